"""The HTTP interfaces, one file each: a module with `PREFIX`, the path that it is under,
`shape(problem)`, the JSON of an error, and `interface(engine)`, which returns a FastAPI application."""
