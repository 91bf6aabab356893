"""Checks of what callers hand over, with errors of one line."""

import operator

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def whole_number(name: str, value: object) -> int:
    """Return an option that counts something, as an int of at least 1.

    Args:
        name: what the option is called.
        value: any integer but a bool.

    Raises:
        ValueError: it is no integer, or below 1.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise ValueError(
            f"{name} must be an integer of at least 1, got {value!r}"
        ) from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def as_int32(name: str, value: ArrayLike) -> jax.Array:
    """Return an array of integers as int32.

    Raises:
        ValueError: its numbers are no integers, so that a conversion would change them.
    """
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must hold integers, got {array.dtype}")
    return array.astype(jnp.int32)
