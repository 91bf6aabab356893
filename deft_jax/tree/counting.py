"""Counts that a GPU makes in one kernel, by comparing all pairs where they are few."""

import math

import jax
import jax.numpy as jnp

MAX_COMPARED = 2**22
"""Pairs up to which the counts of every step compare all."""

MAX_NODE_PAIRS = 2**18
"""Pairs up to which changes of a tree compare all; a CPU takes 0.3 ms for so many."""


def compares(*sizes: int, limit: int | None = None) -> bool:
    """Return whether all pairs of arrays of these sizes are compared.

    Args:
        sizes: lengths of the arrays.
        limit: most pairs, MAX_COMPARED if None.
    """
    return math.prod(sizes) <= (MAX_COMPARED if limit is None else limit)


def compares_nodes(*sizes: int) -> bool:
    """Return what `compares` does, with the limit for changes of a tree."""
    return compares(*sizes, limit=MAX_NODE_PAIRS)


def exclusive_cumsum(x: jax.Array) -> jax.Array:
    """Return [n + 1], entry i the sum of the i first of [n]; the last is the total.

    3 0 2  ->  0 3 3 5
    """
    return jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum(x, dtype=x.dtype)])


def earlier_equal(key: jax.Array, mask: jax.Array) -> jax.Array:
    """Return [n] int32, how many earlier rows of the mask have the same key.

    key 5 7 5 5, mask 1 1 0 1  ->  0 0 1 1
    """
    rows = jnp.arange(key.shape[0])
    same = (key[:, None] == key[None, :]) & mask[None, :]
    return jnp.sum(same & (rows[:, None] > rows[None, :]), axis=1, dtype=jnp.int32)


def sum_before(x: jax.Array) -> jax.Array:
    """Return [..., n] int32, sums of earlier entries of the last axis; true counts 1.

    3 1 2  ->  0 3 4
    """
    square = jnp.broadcast_to(x[..., None, :], (*x.shape, x.shape[-1]))
    return jnp.sum(jnp.tril(square, -1), axis=-1, dtype=jnp.int32)


def count_below(
    number: jax.Array, bound: jax.Array, most: int, *, limit: int | None = None
) -> jax.Array:
    """Return [m] int32, how many numbers are below each bound.

    number 3 0 5, bound 0 3 4  ->  0 1 2

    Args:
        number: [n] int32, within 0 : most + 1; a number of `most` never counts.
        bound: [m] int32, within 0 : most + 1.
        most: static, largest bound.
        limit: pairs up to which all are compared, MAX_COMPARED if None.
    """
    if compares(number.size, bound.size, limit=limit):
        return jnp.sum(number[None] < bound[:, None], axis=1, dtype=jnp.int32)
    counts = jnp.zeros(most + 1, jnp.int32).at[number].add(1)
    return exclusive_cumsum(counts)[bound]


def count_nodes_below(number: jax.Array, bound: jax.Array, most: int) -> jax.Array:
    """Return what `count_below` does, with the limit for changes of a tree."""
    return count_below(number, bound, most, limit=MAX_NODE_PAIRS)


def tally(index: jax.Array, size: int, weight: jax.Array | int = 1) -> jax.Array:
    """Return [size] int32, the weights [n] int32 of each index [n] summed up.

    Indices outside 0 : size do not count.

    index 2 0 2 -1, weight 5 7 1 9, size 3  ->  7 0 6
    """
    if compares_nodes(index.size, size):
        weights = jnp.where(_hits(index, size), weight, 0)
        return jnp.sum(weights, axis=1, dtype=jnp.int32)
    index = jnp.where(index < 0, size, index)
    return jnp.zeros(size, jnp.int32).at[index].add(weight, mode="drop")


def largest(index: jax.Array, size: int, value: jax.Array) -> jax.Array:
    """Return [size] int32, the largest value [n] int32 of each index [n].

    It is -1 where none is. Values are not negative; indices outside 0 : size do not
    count.

    index 2 0 2 -1, value 5 0 7 9, size 3  ->  0 -1 7
    """
    if compares_nodes(index.size, size):
        return jnp.max(jnp.where(_hits(index, size), value, -1), axis=1)
    index = jnp.where(index < 0, size, index)
    return jnp.full(size, -1, jnp.int32).at[index].max(value, mode="drop")


def _hits(index: jax.Array, size: int) -> jax.Array:
    """Return [size, n] bool, true where index [n] is the row's number."""
    return index[None] == jnp.arange(size, dtype=jnp.int32)[:, None]
