"""Pellucid: a text-to-image diffusion system that people can see through."""

__version__ = "0.1.0"
