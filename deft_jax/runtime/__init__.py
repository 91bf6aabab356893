"""Everything inside the jitted step."""
