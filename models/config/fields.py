"""Typed access to the values of a config file, with errors that name the field."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deft_jax.errors import DeftError

MAX_INTEGER = 2**31 - 1
"""Largest integer that a config may hold; sizes and positions are int32."""

_SHOWN = 80
"""Characters of a wrong value that an error shows."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Values read from a file, `None` meaning absent.

    Attributes:
        values: key to value, in the types that JSON or GGUF metadata gave.
        source: name for errors, e.g. the path of the file.
    """

    values: Mapping[str, object]
    source: str

    def error(self, key: str, supported: str) -> DeftError:
        """Return the error to raise for the value of `key`."""
        if self.values.get(key) is None:
            return DeftError(f"{self.source}: {key} is missing; expected {supported}")
        value = _short(repr(self.values[key]))
        return DeftError(f"{self.source}: {key} is {value}; supported: {supported}")

    def integer(self, key: str, default: int | None = None) -> int:
        """Return the positive integer at `key`, or `default` where it is absent.

        Raises:
            DeftError: the value is no integer from 1 to `MAX_INTEGER`, or absent
                without a default.
        """
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or value <= 0:
            raise self.error(key, "a positive integer")
        if value > MAX_INTEGER:
            raise self.error(key, f"at most {MAX_INTEGER}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return the positive finite number at `key`, or `default`.

        Raises:
            DeftError: the value is no such number, or absent without a default.
        """
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        number = _positive(value)
        if number is None:
            raise self.error(key, "a positive number")
        return number

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return the list of positive finite numbers at `key`.

        Raises:
            DeftError: the value is no such list, or absent.
        """
        values = self.values.get(key)
        numbers = [_positive(x) for x in values] if isinstance(values, list) else []
        positive = tuple(number for number in numbers if number is not None)
        if not positive or len(positive) < len(numbers):
            raise self.error(key, "a list of positive numbers")
        return positive

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Return the token ids at `key`: one, a list of them, or none if absent.

        Raises:
            DeftError: the value is no integer and no list of integers.
        """
        value = self.values.get(key)
        given = value if isinstance(value, list) else [] if value is None else [value]
        ids = tuple(token for token in given if type(token) is int)
        if len(ids) < len(given):
            raise self.error(key, "a token id or a list of token ids")
        return ids

    def flag(self, key: str, default: bool) -> bool:
        """Return the truth value at `key`, or `default` where it is absent.

        Raises:
            DeftError: the value is neither true nor false.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def require(self, key: str, supported: Iterable[object]) -> None:
        """Check that the value at `key` is one that the model implements.

        Args:
            key: name of the value.
            supported: the values allowed; `None` among them allows absence.

        Raises:
            DeftError: the value is any other.
        """
        allowed = list(supported)
        if self.values.get(key) not in allowed:
            names = (str(value) for value in allowed if value is not None)
            raise self.error(key, " or ".join(names) or "none")


def shown(value: object) -> str:
    """Return what a file holds as a short part of one line."""
    plain = isinstance(value, str) and value.isprintable()
    return _short(str(value) if plain else repr(value))


def reason(error: Exception) -> str:
    """Return a library's message as one line of bounded length."""
    return " ".join(str(error).split())[:300]


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _positive(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if 0 < number < math.inf else None


def read_json(path: Path) -> dict[str, object]:
    """Return the object in a JSON file.

    Raises:
        DeftError: the file cannot be read, is not JSON, or holds no object.
    """
    # Opening a pipe would wait for a writer.
    if path.exists() and not path.is_file():
        raise DeftError(f"{path}: cannot be read: not a regular file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeftError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DeftError(f"{path}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise DeftError(f"{path}: not valid JSON: nested too deeply") from error
    if not isinstance(values, dict):
        raise DeftError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values
