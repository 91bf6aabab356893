"""How the next token of every row is chosen."""
