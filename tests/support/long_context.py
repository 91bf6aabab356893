"""A tiny engine with room for prompts of sentences, for examples and documentation."""

import dataclasses
import functools

import jax.numpy as jnp
import pytest

import deft_jax
from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.models.families.llama import Llama
from tests.support.tiny_model import CONFIG, AsciiTokenizer

CAPACITY = Capacity(requests=8, rows=16, nodes=128, pages=256, page_size=16, chunk=64)


@functools.cache
def long_engine() -> Engine:
    """Return one engine for all of them, with random float32 weights."""
    config = dataclasses.replace(CONFIG, context_length=1024)
    model = Llama.random(config, seed=1, dtype=jnp.float32)
    return Engine(model, AsciiTokenizer(), capacity=CAPACITY)


def use_long_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let code that loads the default model into an engine have this one."""

    def load_model(name: str) -> tuple[str, str]:
        assert name == "smollm2-135m-instruct"
        return "model", "tokenizer"

    def make_engine(model: str, tokenizer: str) -> Engine:
        assert (model, tokenizer) == ("model", "tokenizer")
        return long_engine()

    monkeypatch.setattr("deft_jax.models.load.load_model", load_model)
    monkeypatch.setattr(deft_jax, "Engine", make_engine)
