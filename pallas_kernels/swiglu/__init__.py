"""Scaling and gating the projections of the MLP."""
