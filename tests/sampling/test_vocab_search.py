import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.sampling.vocab_search import TOP_K_BLOCK_SIZE, argmax, inverse_cdf, top_k

LAST_SHARE = np.nextafter(np.float32(1), np.float32(0))


@given(
    st.sampled_from([1, 255, 256, 257, 1000]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.5, 0.99]),
    st.sampled_from([0.0, 0.25, 0.999, LAST_SHARE]),
)
def test_inverse_cdf_brackets_the_share(size, seed, zeros, share):
    rng = np.random.default_rng(seed)
    weights = np.exp(8 * rng.normal(size=(2, size)))
    weights = np.where(rng.uniform(size=(2, size)) < zeros, 0, weights)
    weights = weights.astype(np.float32)
    index = np.asarray(inverse_cdf(jnp.asarray(weights), jnp.full(2, share, "f4")))
    running = np.cumsum(weights, axis=1, dtype=np.float64)
    for row in range(2):
        total = running[row, -1]
        chosen = weights[row, index[row]]
        assert chosen > 0 or total == 0 == index[row]
        assert running[row, index[row]] >= (share - 1e-5) * total
        assert running[row, index[row]] - chosen <= (share + 1e-5) * total


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_argmax_is_that_of_numpy(size):
    values = np.random.default_rng(0).normal(size=(8, size)).round(0)
    values[3] = -np.inf
    np.testing.assert_array_equal(
        argmax(jnp.asarray(values, jnp.float32)), values.argmax(axis=1)
    )


@pytest.mark.parametrize("size", [1, TOP_K_BLOCK_SIZE, TOP_K_BLOCK_SIZE + 1, 1000])
@pytest.mark.parametrize("k", [1, 3, 20, 1000])
def test_top_k_is_that_of_jax(size, k):
    """With ties, some of them at -inf, where the lowest index comes first."""
    values = np.random.default_rng(size).normal(size=(6, size)).round(1)
    values[2, size // 3 :] = -np.inf
    values[3] = 0
    values[4] = np.sort(values[4])
    values = jnp.asarray(values, jnp.float32)
    k = min(k, size)
    for got, expected in zip(top_k(values, k), jax.lax.top_k(values, k), strict=True):
        np.testing.assert_array_equal(got, expected)
