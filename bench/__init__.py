"""Benchmarks: `deft-jax bench`, and the scripts behind the published figures."""
