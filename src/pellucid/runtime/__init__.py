"""A model at work: devices, number types, and its parts brought to where they compute."""
