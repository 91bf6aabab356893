"""What the kernels have in common: tiles in registers, instructions, vectors."""
