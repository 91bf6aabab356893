"""The stacks of free nodes and pages: numbers are taken from the top, and put back."""

import jax
import jax.numpy as jnp


def push(
    stack: jax.Array, height: jax.Array, freed: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Put numbers on a free list, those that are freed first below the others.

        stack 7 6 . . ., height 2, freed 1 1 0 1 0, first 0 1 0 0 0
        running counts of first 0 1 1 1 1, of the others 1 1 1 2 2
        index 3 2 . 4 .  ->  7 6 1 0 3, height 5

    Args:
        stack: [n] int32, the free list.
        height: [] int32, how many of its entries are free.
        freed: [n] bool, true for numbers to put on it.
        first: [n] bool, true for those of them that come first.

    Returns:
        The list and its new height.
    """
    count = jnp.cumsum(jnp.stack([first, freed & ~first]), axis=1, dtype=jnp.int32)
    index = height + jnp.where(first, count[0], count[0, -1] + count[1]) - 1
    at = jnp.where(freed, index, stack.shape[0])
    items = jnp.arange(stack.shape[0], dtype=jnp.int32)
    height += jnp.sum(freed, dtype=jnp.int32)
    return stack.at[at].set(items, mode="drop"), height
