"""Checkpoint formats, one file each: a new one is found by itself."""
