"""What the kernels share of Mosaic GPU."""
