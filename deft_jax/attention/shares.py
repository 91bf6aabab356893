"""Which positions of a schedule each worker gets."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Shares(NamedTuple):
    """Which positions each worker gets.

    Attributes:
        bound: [W + 1] int32, worker `w` gets `bound[w] : bound[w + 1]`.
        worker_of: from positions to the workers that get them.
    """

    bound: jax.Array
    worker_of: Callable[[jax.Array], jax.Array]


def even_shares(total: jax.Array, workers: int) -> Shares:
    """Return shares that differ by one position at most, the longer ones first.

    10 positions and 4 workers: `bound` is 0 3 6 8 10. Position 7 comes after the
    `2 * 3` positions of the long shares, so worker `2 + (7 - 6) // 2` has it.

    Args:
        total: [] int32, positions.
        workers: number of shares.
    """
    each, rest = total // workers, total % workers
    bound = jnp.arange(workers + 1, dtype=jnp.int32)

    def worker_of(position):
        long = rest * (each + 1)
        later = rest + (position - long) // jnp.maximum(each, 1)
        return jnp.where(position < long, position // (each + 1), later)

    return Shares(bound * each + jnp.minimum(bound, rest), worker_of)


def shares_at(bound: jax.Array) -> Shares:
    """Return shares of any size; workers without one come last.

    Args:
        bound: [W + 1] int32, from 0 to the number of positions, rising but at the end.
    """

    def worker_of(position):
        ends = bound[1:].reshape(*[1] * position.ndim, -1)
        return jnp.sum(ends <= position[..., None], axis=-1, dtype=jnp.int32)

    return Shares(bound, worker_of)
