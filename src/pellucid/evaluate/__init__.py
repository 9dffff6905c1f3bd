"""How good is it? One file per metric."""
