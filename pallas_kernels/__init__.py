"""GPU kernels, one folder per op; they import nothing of the rest."""
