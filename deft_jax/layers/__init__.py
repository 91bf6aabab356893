"""What networks call besides products: projections that are stored, and gates."""
