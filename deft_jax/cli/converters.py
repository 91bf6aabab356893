"""From the text of an option to its value, within limits."""

import argparse
import json
import re
from collections.abc import Callable
from typing import Any


def integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return a converter to an integer from `minimum` to `maximum`, both included."""
    limits = f"of at least {minimum}"
    if maximum is not None:
        limits = f"from {minimum} to {maximum}"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum or (maximum is not None and value > maximum):
            raise argparse.ArgumentTypeError(
                f"expected an integer {limits}, got {text!r}"
            )
        return value

    return convert


def integers(minimum: int, maximum: int | None = None) -> Callable[[str], list[int]]:
    """Return a converter to integers, each within the limits, with commas between."""
    convert = integer(minimum, maximum)
    return lambda text: [convert(part) for part in text.split(",")]


def number(expected: str, is_valid: Callable[[float], bool]) -> Callable[[str], float]:
    """Return a converter to a number for which `is_valid` holds."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return convert


def pattern(text: str) -> str:
    """Return a regular expression that compiles."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a regular expression, got {text!r:.60}: {error}"
        ) from None
    return text


def non_empty(text: str) -> str:
    """Return a text of at least one character."""
    if not text:
        raise argparse.ArgumentTypeError("expected at least 1 character, got ''")
    return text


def assignment(text: str) -> tuple[str, Any]:
    """Return the name and the value of KEY=VALUE.

    A value that is JSON is read as such, any other is text: `x=false` is `False`,
    `x="false"` and `x=no` are strings.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(
            f"expected KEY=VALUE, such as enable_thinking=false, got {text!r}"
        )
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def names(*known: str) -> Callable[[str], list[str]]:
    """Return a converter to names out of `known` with commas between them."""

    def convert(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"expected any of {', '.join(known)}, got {name!r}"
                )
        return chosen

    return convert
