"""The HTTP interfaces, one file each: a module with `PREFIX` and `interface(engine)`, a FastAPI app."""
