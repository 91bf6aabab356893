"""What the operations of a tree take: integers or masks, one per row or node."""

import jax
import jax.numpy as jnp

from deft_jax.errors import DeftError


def integers(name: str, value, size: int | str) -> jax.Array:
    """Return an argument as int32, or say in one line what is wrong with it.

    Args:
        name: what the caller calls it.
        value: what was given.
        size: its length, or the letter of a length that is free.

    Raises:
        DeftError: it is no one-dimensional array of integers of that length.
    """
    return _checked(name, value, size, jnp.integer, "integers").astype(jnp.int32)


def masks(name: str, value, size: int | str) -> jax.Array:
    """Return an argument as an array of bool, or say what is wrong with it.

    Args:
        name: what the caller calls it.
        value: what was given.
        size: its length, or the letter of a length that is free.

    Raises:
        DeftError: it is no one-dimensional array of bool of that length.
    """
    return _checked(name, value, size, jnp.bool_, "bool")


def _checked(name: str, value, size: int | str, kind, kinds: str) -> jax.Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise DeftError(
            f"{name} must be [{size}] {kinds}, got {value!r:.60}; pass an array"
        ) from None
    fits = array.ndim == 1 and (isinstance(size, str) or array.shape[0] == size)
    if not fits or not jnp.issubdtype(array.dtype, kind):
        shape = ", ".join(map(str, array.shape))
        raise DeftError(
            f"{name} must be [{size}] {kinds}, got [{shape}] {array.dtype}; pass one "
            "entry per row or node"
        )
    return array
