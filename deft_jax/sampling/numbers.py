"""Numbers that callers give: of Python, NumPy or JAX, checked and made Python's own."""

import operator
from typing import Any

import numpy as np

from deft_jax.errors import DeftError


def as_integer(name: str, value: Any, low: int, high: int) -> int:
    """Return a caller's integer; booleans are refused, they are so only by descent.

    Raises:
        DeftError: the value is no integer, or outside `low` to `high`.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise DeftError(f"{name} must be an integer, got {value!r}") from None
    if not low <= number <= high:
        raise DeftError(f"{name} must be from {low} to {high}, got {number}")
    return number


def as_integers(name: str, values: Any, low: int, high: int) -> tuple[int, ...]:
    """Return a caller's integers, from one, several or None.

    Args:
        name: what the integers are, for the error.
        values: what the caller gives.
        low: least value.
        high: greatest value.

    Raises:
        DeftError: a value is no integer, or outside its limits.
    """
    if values is None:
        return ()
    try:
        found = tuple(values)
    except TypeError:
        found = (values,)
    return tuple(as_integer(f"a token of {name}", x, low, high) for x in found)


def as_number(name: str, value: Any, low: float, high: float, limits: str) -> float:
    """Return a caller's number; one that is an integer stays one.

    Args:
        name: what the number is, for the error.
        value: what the caller gives.
        low: least value.
        high: greatest value.
        limits: what values are allowed, in words.

    Raises:
        DeftError: the value is no number, a NaN, or outside its limits.
    """
    number = _real(value)
    if number is None:
        raise DeftError(f"{name} must be a number, got {value!r}")
    # Written to refuse a NaN.
    if not low <= number <= high:
        raise DeftError(f"{name} must be {limits}, got {value}")
    return number


def as_flag(name: str, value: Any) -> bool:
    """Return a caller's boolean.

    Raises:
        DeftError: the value is neither true nor false.
    """
    if not isinstance(value, bool | np.bool_):
        raise DeftError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _real(value: Any) -> float | None:
    """Return a value as `int` or `float`, None if it is no real number."""
    if isinstance(value, bool | np.bool_ | complex):
        return None
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        is_real = value.shape == () and value.dtype.kind not in "bcOSU"
        return float(value) if is_real else None
    return value if isinstance(value, int | float) else None
