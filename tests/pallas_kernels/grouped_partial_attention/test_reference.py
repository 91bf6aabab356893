"""The oracle against plain softmax in float64, over random ranges of ranks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.pallas_kernels.grouped_partial_attention.reference import (
    grouped_partial_attention_reference,
)
from tests.support import float64_attention
from tests.support.shapes import HEADS, Heads
from tests.support.tolerances import assert_attention_close

NUM_QUERIES, NUM_TOKENS, SCALE = 7, 40, 0.2
SEEDS = st.integers(0, 2**32 - 1)

oracle = jax.jit(
    grouped_partial_attention_reference,
    static_argnames=("scale", "window", "soft_cap"),
)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Numpy arguments of the oracle in their order.

    Attributes:
        q: [Q, H, D] float32.
        k: [T, K, D] float32.
        v: [T, K, D] float32.
        first: [T] int32, first rank that sees a token.
        end: [T] int32, one past the last; not above `first` for tokens unseen.
        query_position: [Q] int32.
        token_position: [T] int32.
    """

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    first: np.ndarray
    end: np.ndarray
    query_position: np.ndarray
    token_position: np.ndarray

    @classmethod
    def random(cls, heads: Heads, seed: int, dtype: str = "float32") -> "Tokens":
        """Draw any ranges, empty and inverted too; the first query sees nothing."""
        rng = np.random.default_rng(seed)

        def normal(*shape):
            values = jnp.asarray(rng.normal(size=shape), dtype)
            return np.asarray(values.astype("float32"))

        def below(high, size, low=0):
            return rng.integers(low, high + 1, size, np.int32)

        return cls(
            q=normal(NUM_QUERIES, heads.num_q, heads.head_dim),
            k=normal(NUM_TOKENS, heads.num_kv, heads.head_dim),
            v=normal(NUM_TOKENS, heads.num_kv, heads.head_dim),
            first=below(NUM_QUERIES, NUM_TOKENS, low=1),
            end=below(NUM_QUERIES, NUM_TOKENS),
            query_position=below(20, NUM_QUERIES),
            token_position=below(20, NUM_TOKENS),
        )

    def arguments(self, dtype: str = "float32") -> list[jax.Array]:
        """Return the arguments of the oracle, q, k and v in a dtype."""
        masks = (self.first, self.end, self.query_position, self.token_position)
        values = [jnp.asarray(x, dtype) for x in (self.q, self.k, self.v)]
        return [*values, *(jnp.asarray(x) for x in masks)]

    def seen_by(self, rank: int, window: int | None) -> list[int]:
        """Return the tokens that a query sees."""
        tokens = [t for t in range(NUM_TOKENS) if self.first[t] <= rank < self.end[t]]
        back = self.query_position[rank] - self.token_position
        return [t for t in tokens if window is None or back[t] < window]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("name", ["smollm2_135m", "gemma_2b", "phi2"])
@given(seed=SEEDS)
def test_softmax_over_the_tokens_in_range(name, soft_cap, window, seed):
    tokens = Tokens.random(HEADS[name], seed)
    expected = [
        float64_attention.attend(
            tokens.q[rank],
            tokens.k[seen],
            tokens.v[seen],
            scale=SCALE,
            soft_cap=soft_cap,
        )
        for rank in range(NUM_QUERIES)
        for seen in [tokens.seen_by(rank, window)]
    ]
    actual = oracle(*tokens.arguments(), scale=SCALE, window=window, soft_cap=soft_cap)
    out, lse = (np.stack(x) for x in zip(*expected, strict=True))
    assert np.isneginf(lse[0]).all()
    assert_attention_close(actual, (out, lse))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_are_computed_in_float32(dtype):
    tokens = Tokens.random(HEADS["llama3_8b"], seed=0, dtype=dtype)
    narrow = oracle(*tokens.arguments(dtype), scale=SCALE)
    wide = oracle(*tokens.arguments(), scale=SCALE)
    assert [x.dtype for x in narrow] == ["float32", "float32"]
    for actual, expected in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_tokens_that_no_query_sees_do_not_matter(window, soft_cap):
    """Whether their range is empty or the window hides them from every query."""
    tokens = Tokens.random(HEADS["smollm2_135m"], seed=0)
    seen = {t for rank in range(NUM_QUERIES) for t in tokens.seen_by(rank, window)}
    hidden = np.array([t not in seen for t in range(NUM_TOKENS)])[:, None, None]
    assert hidden.any() and not hidden.all()
    options = {"scale": SCALE, "window": window, "soft_cap": soft_cap}
    expected = oracle(*tokens.arguments(), **options)
    for poison in (np.nan, np.inf):
        spoilt = dataclasses.replace(
            tokens,
            k=np.where(hidden, poison, tokens.k),
            v=np.where(hidden, poison, tokens.v),
        )
        for x, y in zip(oracle(*spoilt.arguments(), **options), expected, strict=True):
            np.testing.assert_array_equal(x, y)


def test_large_logits_do_not_overflow():
    tokens = Tokens.random(HEADS["smollm2_135m"], seed=0)
    out, lse = oracle(*tokens.arguments(), scale=1e4)
    seeing = ~np.isneginf(lse)
    assert seeing.any() and np.isfinite(lse[seeing]).all()
    assert np.abs(out).max() <= np.abs(tokens.v).max() * 1.0001
