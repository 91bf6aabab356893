"""Weights from files to the device."""
