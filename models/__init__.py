"""Networks, their checkpoints and their tokenizers."""
