"""Keys and values in pages that are written in place and never moved."""
