"""What the example strategies share."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from deft_jax.results.generation_tree import GenerationTree
from deft_jax.strategies.protocol import View


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A strategy that is its own planner and leaves the result as it is."""

    @property
    def planner(self) -> Self:
        return self

    @property
    def draft_depth(self) -> int:
        return 1

    def conclude(self, tree: GenerationTree) -> GenerationTree:
        return tree


def seat(seats: jax.Array, view: View) -> jax.Array:
    """Return [R, S] int32, rows of each request slot, noted while fresh."""
    request = jnp.where(view.is_fresh, view.request, seats.shape[0])
    rows = jnp.arange(view.node.shape[0], dtype=jnp.int32)
    return seats.at[request, view.number].set(rows, mode="drop")


def put(default: jax.Array, row: jax.Array, value: jax.Array) -> jax.Array:
    """Return `default` [B] with values [...] at rows [...]; row B is dropped."""
    return default.at[row].set(value.astype(default.dtype), mode="drop")
