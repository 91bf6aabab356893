"""The real SmolLM2: NumPy's logits, and a right answer."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.engine.engine import Engine
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from tests.support.dense_attention import dense_logits
from tests.support.models.numpy_llama import read_gguf
from tests.support.models.tree_logits import tree_logits

TEXT = (
    "Rome is the capital of Italy, Madrid is the capital of Spain,"
    " and the capital of France is"
)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ATOL = 1e-3
"""Largest error of a float32 logit."""


@pytest.fixture(scope="module")
def tokens(smollm2) -> list[int]:
    ids = smollm2[1].encode(TEXT)
    assert len(ids) >= 18
    return ids


@pytest.fixture(scope="module")
def expected(smollm2_path: Path, tokens: list[int]) -> np.ndarray:
    return read_gguf(smollm2_path).logits(tokens)


def test_dense_logits_are_those_of_numpy(smollm2, tokens, expected):
    logits = dense_logits(smollm2[0], jnp.asarray(tokens))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=ATOL)


def test_tree_logits_are_those_of_numpy(smollm2, tokens, expected):
    logits = tree_logits(smollm2[0], tokens, chunk=12)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=ATOL)


def test_numpy_knows_the_capital_too(smollm2, expected):
    assert smollm2[1].decode([int(expected[-1].argmax())]) == " Paris"


def test_capital_of_france(smollm2):
    model, tokenizer = smollm2
    engine = Engine(model, tokenizer)
    sampling = Sampling(temperature=0.0, max_new_tokens=32)
    prompt = tokenizer.encode_chat(QUESTION)
    (tree,) = engine.generate([prompt], BestOfN(1), sampling)
    best = tree.best()
    assert tree.path_text(best) == "The capital of France is Paris."
    assert best.finish_reason == "stop"
