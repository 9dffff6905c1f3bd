"""How good is a model? `metrics` holds one file for each metric; `compare` sets methods side by side."""
