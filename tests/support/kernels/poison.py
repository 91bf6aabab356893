"""Pools whose slots hold NaN and infinity wherever no query of the step sees them."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.attention_checks import Inputs
from tests.support.forests import Forest


def poisoned(args: Inputs, forest: Forest) -> tuple[jax.Array, jax.Array]:
    """Return k and v of a step, not finite in any slot outside every query's range."""
    hidden = ~forest.seen[:, None, :, None]
    bad = np.array([np.nan, np.inf, -np.inf])
    rng = np.random.default_rng(0)

    def spoil(pool: jax.Array) -> jax.Array:
        poison = jnp.asarray(rng.choice(bad, pool.shape), pool.dtype)
        return jnp.where(hidden, poison, pool)

    k, v = args.clean
    return spoil(k), spoil(v)
