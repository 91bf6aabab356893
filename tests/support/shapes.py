"""Attention heads of real models, one name for tests and benchmarks."""

from deft_jax.attention.spec import HEADS, Heads

__all__ = ["HEADS", "Heads"]
