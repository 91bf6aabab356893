"""Typed access to the values of a config file, with errors that name the field."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deft_jax.errors import DeftError


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Values read from a file, `None` meaning absent.

    values: key to value, as JSON or GGUF metadata gave it
    source: what an error names, e.g. the path of the file
    """

    values: Mapping[str, object]
    source: str

    def error(self, key: str, supported: str) -> DeftError:
        """Return the error to raise for the value of `key`."""
        if self.values.get(key) is None:
            return DeftError(f"{self.source}: {key} is missing; expected {supported}")
        return DeftError(
            f"{self.source}: {key} is {self.values[key]!r}; supported: {supported}"
        )

    def integer(self, key: str, default: int | None = None) -> int:
        """Return the positive integer at `key`, or `default` where it is absent.

        Raises:
            DeftError: it is not a positive integer, or absent without a default.
        """
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or value <= 0:
            raise self.error(key, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return the positive finite number at `key`, or `default`.

        Raises:
            DeftError: it is not such a number, or absent without a default.
        """
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int | float) and not isinstance(value, bool):
            if 0 < value < math.inf:
                return float(value)
        raise self.error(key, "a positive number")

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Return the token ids at `key`: one, a list of them, or none if absent.

        Raises:
            DeftError: a value is not an integer of 0 or more.
        """
        value = self.values.get(key)
        given = value if isinstance(value, list) else [] if value is None else [value]
        ids = tuple(token for token in given if type(token) is int and token >= 0)
        if len(ids) < len(given):
            raise self.error(key, "a token id or a list of token ids")
        return ids

    def token_id(self, key: str) -> int | None:
        """Return the one token id at `key`, the first of a list, or `None`."""
        return next(iter(self.token_ids(key)), None)

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

        supported: the values allowed; `None` among them allows absence

        Raises:
            DeftError: it is any other.
        """
        allowed = list(supported)
        if self.values.get(key) not in allowed:
            names = (str(value) for value in allowed if value is not None)
            raise self.error(key, " or ".join(names) or "none")


def read_json(path: Path) -> dict[str, object]:
    """Return the object in a JSON file.

    Raises:
        DeftError: the file cannot be read, is not JSON, or holds no object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeftError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DeftError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise DeftError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values
