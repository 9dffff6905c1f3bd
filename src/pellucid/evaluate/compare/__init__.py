"""Compares on the same data: a GAN, a GAN with packing, and a diffusion model.

Each method is trained on the same pictures, in the same order, the same number of them, with
networks of the same size, with several seeds; then its samples are counted.
"""
