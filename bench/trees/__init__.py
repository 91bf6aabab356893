"""Trees to decode: recorded, drafted, by level, at random."""
