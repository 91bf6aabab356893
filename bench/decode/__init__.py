"""Measuring decode steps."""
