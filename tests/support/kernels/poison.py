"""Pools whose slots hold NaN and infinity wherever no query of the step sees them."""

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.attention.grouping import Grouping
from tests.support.attention_checks import Case, Inputs


def poisoned(case: Case, args: Inputs) -> tuple[jax.Array, jax.Array]:
    """Return k and v of a step, not finite in any slot that no query sees."""
    hidden = ~seen_slots(args.grouping, case.window)[:, None, :, None]
    bad = np.array([np.nan, np.inf, -np.inf])
    rng = np.random.default_rng(0)

    def spoil(pool: jax.Array) -> jax.Array:
        poison = jnp.asarray(rng.choice(bad, pool.shape), pool.dtype)
        return jnp.where(hidden, poison, pool)

    k, v = args.clean
    return spoil(k), spoil(v)


def seen_slots(grouping: Grouping, window: int | None) -> np.ndarray:
    """Return [M, P] bool: whether any live query sees the token of each slot."""
    rank = np.arange(int(grouping.num_live))
    first, end, position = (
        np.asarray(x)[..., None]
        for x in (grouping.slot_first, grouping.slot_end, grouping.slot_position)
    )
    seen = (first <= rank) & (rank < end)
    if window is not None:
        back = np.asarray(grouping.query_position)[rank] - position
        seen &= back < window
    return seen.any(axis=-1)
