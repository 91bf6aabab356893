"""The command `deft-jax`."""
