"""How the models that ship were made: what is theirs alone, and no loop of `train` needs to know."""
