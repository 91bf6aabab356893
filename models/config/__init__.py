"""Shapes and constants of models, from the files that describe them."""
