"""Parts of a model, opened: the autoencoder (`autoencoder`) and CLIP (`clip`).

Each module has a `look` that gives a record, and `page` makes a page of either.
"""
