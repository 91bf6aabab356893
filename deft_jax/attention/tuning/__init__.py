"""Measuring the sizes of the kernels on the user's own GPU."""
