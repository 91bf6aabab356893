"""What networks are made of: products with weights, stored projections, and gates."""
