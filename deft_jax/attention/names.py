"""The names of the implementations; options are checked without importing JAX."""

IMPLEMENTATIONS = ("mosaic_gpu", "xla", "reference")
"""What `tree_attention` can be computed by, the fastest one first."""
