"""The check that every implementation of the op has to pass, on any forest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.attention.api import tree_attention
from deft_jax.attention.grouping import Grouping, group
from tests.support.forest_plans import Limits, Plan
from tests.support.forests import Forest, grow
from tests.support.shapes import Heads
from tests.support.tolerances import assert_attention_close

SMALL = Limits(nodes=16, pages=32, page_size=4, rows=24)

GARBAGE = 1e4
"""What slots hold that no query sees; a pool keeps the KV of dropped tokens."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What one compilation of the op depends on."""

    heads: Heads
    limits: Limits = SMALL
    dtype: str = "float32"
    tile_queries: int | None = None
    scale: float | None = None
    window: int | None = None
    soft_cap: float | None = None

    @property
    def options(self) -> dict[str, float | None]:
        """Keyword arguments of `tree_attention`."""
        return {name: getattr(self, name) for name in ("scale", "window", "soft_cap")}


group_jit = jax.jit(group, static_argnames="tile_queries")
attend = jax.jit(
    tree_attention, static_argnames=("scale", "window", "soft_cap", "implementation")
)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arguments of the op for one forest.

    Attributes:
        grouping: grouping of the forest.
        q: [Q, H, D], queries in rank order.
        clean: k and v, zeros in slots that no query sees.
        poisoned: k and v, garbage in slots that no query sees, and NaN in pages of
            which none sees any token.
    """

    grouping: Grouping
    q: jax.Array
    clean: tuple[jax.Array, jax.Array]
    poisoned: tuple[jax.Array, jax.Array]


def inputs(case: Case, forest: Forest, seed: int) -> Inputs:
    """Draw random arguments; some queries attend sharply, others broadly."""
    rng = np.random.default_rng(seed)
    grouping = group_jit(forest.tree, forest.slots, tile_queries=case.tile_queries)
    heads, (num_pages, page_size) = case.heads, forest.seen.shape
    q = rng.normal(size=(case.limits.rows, heads.num_q, heads.head_dim))
    q *= rng.choice([1.0, 2.0], size=(case.limits.rows, 1, 1))
    pool_shape = (num_pages, heads.num_kv, page_size, heads.head_dim)
    seen = forest.seen[:, None, :, None]
    touched = seen.any(axis=2, keepdims=True)
    poison = np.where(touched, GARBAGE, np.nan)
    pools = [rng.normal(size=pool_shape) for _ in range(2)]

    def cast(x):
        return jnp.asarray(x, case.dtype)

    k, v = (cast(np.where(seen, pool, 0.0)) for pool in pools)
    bad_k, bad_v = (cast(np.where(seen, pool, poison)) for pool in pools)
    return Inputs(grouping, cast(q), clean=(k, v), poisoned=(bad_k, bad_v))


def check(case: Case, plan: Plan, implementation: str) -> None:
    """Compare with the oracle, which gets a clean pool, and two runs bit for bit."""
    args = inputs(case, grow(plan), plan.seed)
    expected = attend(
        args.q, *args.clean, args.grouping, **case.options, implementation="reference"
    )
    actual, again = (
        attend(
            args.q,
            *args.poisoned,
            args.grouping,
            **case.options,
            implementation=implementation,
        )
        for _ in range(2)
    )
    assert actual[0].dtype == case.dtype
    assert actual[1].dtype == np.float32
    assert_attention_close(actual, expected, case.dtype)
    for first, second in zip(actual, again, strict=True):
        assert np.asarray(first).tobytes() == np.asarray(second).tobytes()
