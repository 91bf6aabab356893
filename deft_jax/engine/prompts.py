"""Prompts as callers give them: text or token ids, in lists or arrays."""

import operator
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from deft_jax.errors import CapacityError, DeftError

Prompt = str | Sequence[int]
"""Text, encoded as it stands, or token ids, such as those of a chat template."""


def list_prompts(prompts: Any) -> list[str | list[int]]:
    """Return one prompt or several as a list of texts and lists of token ids.

    "ab" -> ["ab"],  [5, 6] -> [[5, 6]],  ["ab", [5, 6]] -> ["ab", [5, 6]]

    Args:
        prompts: text, or token ids in a list, a tuple or an array of NumPy or JAX; or
            any iterable of those.

    Raises:
        DeftError: there is no prompt, or one is neither text nor token ids.
    """
    if isinstance(prompts, str):
        return [prompts]
    items = list(_iterate(prompts, "prompts"))
    if not items:
        raise DeftError("expected at least 1 prompt, got none")
    if not any(_is_prompt(item) for item in items):
        items = [items]
    return [
        item if isinstance(item, str) else _token_ids(index, item)
        for index, item in enumerate(items)
    ]


def check_token_ids(
    index: int, ids: list[int], vocab_size: int, context_length: int
) -> None:
    """Check that a prompt can be read by the model.

    Raises:
        CapacityError: the model's context leaves no room for an answer.
        DeftError: there is no token, or one is not in the vocabulary.
    """
    if not ids:
        raise DeftError(f"prompt {index} has no tokens; give at least one")
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise DeftError(
            f"prompt {index} has token ids from {min(ids)} to {max(ids)}; "
            f"the vocabulary has 0 to {vocab_size - 1}"
        )
    if len(ids) >= context_length:
        raise CapacityError(
            f"prompt {index} has {len(ids)} tokens; the model's context of "
            f"{context_length} leaves no room for an answer; shorten the prompt"
        )


def _is_prompt(item: Any) -> bool:
    """Say whether an item is a whole prompt; arrays without dimensions are tokens."""
    if hasattr(item, "ndim"):
        return item.ndim > 0
    return isinstance(item, str) or hasattr(item, "__iter__")


def _token_ids(index: int, prompt: Any) -> list[int]:
    """Return token ids as plain integers."""
    ids = list(_iterate(prompt, f"prompt {index}"))
    try:
        if any(isinstance(token, bool | np.bool_) for token in ids):
            raise TypeError
        return [operator.index(token) for token in ids]
    except TypeError:
        raise DeftError(
            f"prompt {index} must be text or integer token ids, got {_short(prompt)}"
        ) from None


def _iterate(value: Any, name: str) -> Any:
    """Return an iterator over a value, arrays by way of NumPy, which is fast.

    Raises:
        DeftError: it cannot be iterated over.
    """
    try:
        if isinstance(value, bytes | bytearray | Mapping | Set):
            raise TypeError  # They iterate over something else than token ids.
        return iter(np.asarray(value) if hasattr(value, "ndim") else value)
    except TypeError:
        raise DeftError(
            f"{name} must be text or integer token ids, got {_short(value)}"
        ) from None


def _short(value: Any) -> str:
    return " ".join(f"{value!r:.60}".split())
