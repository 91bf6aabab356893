"""Measuring the attention kernels."""
