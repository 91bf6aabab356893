"""The tiny model with room for prompts of sentences, for examples and documentation."""

import dataclasses
import functools

import jax.numpy as jnp

from deft_jax.models.families.llama import Llama
from tests.support.tiny_model import CONFIG, AsciiTokenizer


@functools.cache
def long_model() -> Llama:
    """Return random float32 weights with a context of 1024 tokens."""
    config = dataclasses.replace(CONFIG, context_length=1024)
    return Llama.random(config, seed=1, dtype=jnp.float32)


def load_tiny(name: str) -> tuple[Llama, AsciiTokenizer]:
    """Stand in for `load_model`, which takes the name of a real model."""
    assert name == "smollm2-135m-instruct"
    return long_model(), AsciiTokenizer()
