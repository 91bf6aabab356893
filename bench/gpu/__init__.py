"""Clocks and ceilings of GPUs."""
