"""Bytes that attention moves, by arithmetic."""
