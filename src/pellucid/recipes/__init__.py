"""How models were designed, one file each: what is theirs alone, and no training loop contains.

A recipe is a file with a `train.recipe.Recipe` called ``RECIPE``.
"""
