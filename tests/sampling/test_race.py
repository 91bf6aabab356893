"""The race draws exactly what the weights say, and moves with nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.sampling.noise import exponential
from deft_jax.sampling.vocab_search import BLOCK_SIZE, FIRST_BLOCK, inverse_cdf, race


def names(num_rows, seed=0, position=0):
    """Names of the noise of rows whose keys count up."""
    key = jnp.arange(num_rows, dtype=jnp.uint32)[:, None]
    return jnp.uint32(seed), key, jnp.int32(position)


@jax.jit
def draw(weights, position):
    given = names(weights.shape[0], position=position)
    return race(weights, functools.partial(exponential, *given))


@pytest.mark.parametrize("size", [1, 7, 256, 257, 700, 1000])
def test_the_winner_is_the_first_of_two_races_in_float64(size):
    weights = np.exp(np.random.default_rng(size).normal(scale=3, size=(64, size)))
    weights[:, ::3] = 0
    weights[:, -1] = 1
    weights = weights.astype(np.float32)
    noise = functools.partial(exponential, *names(64))
    number = np.arange(-(-size // BLOCK_SIZE) * BLOCK_SIZE, dtype=np.uint32)
    inside = np.asarray(noise(jnp.asarray(number)[None]), np.float64)
    blocks = np.arange(number.size // BLOCK_SIZE, dtype=np.uint32)[None]
    outside = np.asarray(noise(jnp.asarray(blocks + np.uint32(FIRST_BLOCK))))
    padded = np.pad(weights.astype(np.float64), ((0, 0), (0, number.size - size)))
    sums = padded.reshape(64, -1, BLOCK_SIZE).sum(axis=2)
    block = (sums / outside).argmax(axis=1)
    for row, token in enumerate(np.asarray(draw(weights, 0))):
        own = slice(block[row] * BLOCK_SIZE, (block[row] + 1) * BLOCK_SIZE)
        speed = padded[row, own] / inside[row, own]
        assert token == block[row] * BLOCK_SIZE + speed.argmax()


def test_two_levels_have_the_probabilities_of_the_weights():
    """Every token of every block, at a resolution of 0.1 % of the total."""
    weights = np.random.default_rng(0).gamma(0.3, size=(1, 600)).astype(np.float32)
    rows = jnp.broadcast_to(weights, (1000, 600))
    counts = np.zeros(600)
    for position in range(400):
        counts += np.bincount(draw(rows, position), minlength=600)
    expected = weights[0] / weights.sum(dtype=np.float64) * counts.sum()
    large = expected > 20
    chi_square = ((counts - expected)[large] ** 2 / expected[large]).sum()
    degrees = large.sum()
    assert abs(chi_square - degrees) < 4 * (2 * degrees) ** 0.5
    few = counts[~large].sum()
    assert abs(few - expected[~large].sum()) < 5 * expected[~large].sum() ** 0.5 + 5


@given(
    st.lists(st.sampled_from([0.0, 1.2e-38, 1e-30, 1e-3, 1.0]), min_size=6, max_size=6),
    st.integers(0, 1000),
)
def test_no_index_of_weight_zero_wins(values, position):
    weights = np.zeros((3, 270), np.float32)
    weights[:, [0, 1, 100, 255, 256, 269]] = values
    token = np.asarray(draw(weights, position))
    chosen = weights[np.arange(3), token]
    assert np.all(chosen > 0) if any(values) else np.all(token == 0)


def test_rounding_moves_boundaries_of_a_running_sum_but_no_race():
    """Half of the logits are 1e-5 larger, as much as another batch size may change."""
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=2, size=(64, 49152)).astype(np.float32)
    second = np.where(np.arange(49152) < 24576, logits, logits + np.float32(1e-5))
    one, other = (jnp.exp(x - logits.max()) for x in (logits, second))
    moved = 0
    for position in range(12):
        assert np.all(draw(one, position) == draw(other, position))
        share = jnp.asarray(rng.uniform(size=64), jnp.float32)
        moved += int(np.sum(inverse_cdf(one, share) != inverse_cdf(other, share)))
    assert moved > 10
