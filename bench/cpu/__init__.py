"""Measuring a small model on a CPU."""
