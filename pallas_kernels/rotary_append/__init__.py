"""Scaling, rotating and storing a step's heads."""
