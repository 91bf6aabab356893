"""Searches along the vocabulary axis in two levels: first a block, then inside it.

One level would need a running sum over the whole vocabulary, which is slow and adds
a float32 rounding error for every token that comes before; XLA's own `argmax` takes
five times as long on a CPU.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

BLOCK_SIZE = 256

FIRST_BLOCK = 1 << 31
"""Number that stands for the first block in `race`; tokens have the numbers below."""

TOP_K_BLOCK_SIZE = 64
"""Block size of `top_k`, which sorts the peaks of all blocks and `k` whole blocks."""


def argmax(values: jax.Array) -> jax.Array:
    """Return the index of the largest value of each row, the lowest one on ties.

    Args:
        values: [B, V] float32, no NaN.

    Returns:
        [B] int32; 0 for a row of -inf.
    """
    blocks = _blocks(values, -jnp.inf)
    block = _first_peak(blocks.max(axis=-1))
    return block * BLOCK_SIZE + _first_peak(_take(blocks, block))


def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Return the largest values of each row and their indices, the lowest ones on ties.

    `lax.top_k` sorts whole rows. That takes longer, and on a GPU the sort may be one
    that cannot be in a command buffer, so that the host has to start every kernel of
    a decode step.

    Args:
        values: [B, V] float32, no NaN.
        k: number of values, at most V.

    Returns:
        [B, k] float32 and [B, k] int32, by falling value.
    """
    blocks = _blocks(values, -jnp.inf, TOP_K_BLOCK_SIZE)
    # A value among the k largest is in a block that has one of the k largest peaks.
    _, block = lax.top_k(blocks.max(axis=-1), min(k, blocks.shape[1]))
    # In order, so that of equal values those of lower indices come first.
    block = jnp.sort(block, axis=1)
    inside = jnp.take_along_axis(blocks, block[:, :, None], axis=1)
    value, place = lax.top_k(inside.reshape(values.shape[0], -1), k)
    block = jnp.take_along_axis(block, place // TOP_K_BLOCK_SIZE, axis=1)
    return value, block * TOP_K_BLOCK_SIZE + place % TOP_K_BLOCK_SIZE


def race(
    weights: jax.Array, exponential: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Draw an index per row with a probability that is proportional to its weight.

    Index `i` arrives after the time `E[i] / weights[i]`, and the first wins: the Gumbel
    trick, `argmax(log(weights) - log(E))`, without its logarithms. A weight that moves
    a little changes the winner only if another arrives at nearly the same time, while
    along a running sum every boundary moves with it.

    A block arrives first with the probability of all its indices together, and the race
    is held again inside: `V / 256 + 256` numbers decide instead of `V`.

    Args:
        weights: [B, V] float32, not negative, finite; they need not sum to 1.
        exponential: from [1 or B, n] uint32, what a number is for (an index, or a block
            from `FIRST_BLOCK` on), to exponentially distributed numbers of mean 1,
            [B, n] float32.

    Returns:
        [B] int32, an index of positive weight; 0 for a row of zeros.
    """
    blocks = _blocks(weights, 0.0)
    number = jnp.arange(blocks.shape[1], dtype=jnp.uint32)[None]
    number = number + jnp.uint32(FIRST_BLOCK)
    block = _winner(blocks.sum(axis=-1), exponential(number))
    token = block[:, None] * BLOCK_SIZE + jnp.arange(BLOCK_SIZE, dtype=jnp.int32)[None]
    inside = _winner(_take(blocks, block), exponential(token.astype(jnp.uint32)))
    return block * BLOCK_SIZE + inside


def inverse_cdf(weights: jax.Array, share: jax.Array) -> jax.Array:
    """Return the first index at which a row's running sum exceeds a share of its total.

    Args:
        weights: [B, V] float32, not negative, finite; they need not sum to 1.
        share: [B] float32 in [0, 1).

    Returns:
        [B] int32, an index of positive weight whatever the rounding; 0 for a row of
        zeros.
    """
    blocks = _blocks(weights, 0.0)
    sums = blocks.sum(axis=-1)
    target = share * sums.sum(axis=-1)
    block = _first_past(sums, target)
    inside = target - _sum_before(sums, block)
    return block * BLOCK_SIZE + _first_past(_take(blocks, block), inside)


def _blocks(values: jax.Array, fill: float, size: int = BLOCK_SIZE) -> jax.Array:
    padding = -values.shape[1] % size
    padded = jnp.pad(values, ((0, 0), (0, padding)), constant_values=fill)
    return padded.reshape(values.shape[0], -1, size)


def _take(blocks: jax.Array, block: jax.Array) -> jax.Array:
    return jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]


def _first(mask: jax.Array) -> jax.Array:
    index = jax.lax.broadcasted_iota(jnp.int32, mask.shape, 1)
    return jnp.where(mask, index, mask.shape[1]).min(axis=-1)


def _first_peak(values: jax.Array) -> jax.Array:
    return _first(values == values.max(axis=-1, keepdims=True))


def _winner(weights: jax.Array, exponential: jax.Array) -> jax.Array:
    """Return who arrives first, by who is fastest; a speed may underflow to 0."""
    return _first_peak(jnp.where(weights > 0, weights / exponential, -1.0))


def _first_past(weights: jax.Array, target: jax.Array) -> jax.Array:
    """Return the first positive weight at which the running sum exceeds the target.

    It is the last positive one if the sum stays below.

    A parallel running sum may grow by rounding where the weight is zero, and its end
    may stay below a target that was computed in another order.
    """
    positive = weights > 0
    past = _first(positive & (jnp.cumsum(weights, axis=-1) > target[:, None]))
    index = jax.lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    last = jnp.where(positive, index, 0).max(axis=-1)
    return jnp.minimum(past, last)


def _sum_before(weights: jax.Array, end: jax.Array) -> jax.Array:
    index = jax.lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    return jnp.where(index < end[:, None], weights, 0.0).sum(axis=-1)
