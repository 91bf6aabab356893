"""What host programs make of log-probabilities and of scores of their own."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from deft_jax.errors import DeftError


def totals(scores: Iterable[Sequence[float]]) -> list[float]:
    """Return the sum of each text's log-probabilities."""
    return [math.fsum(tokens) for tokens in scores]


def likeliest(scores: Sequence[Sequence[float]], *, mean: bool) -> int:
    """Return the index of the most likely text, the first of equal ones.

    Args:
        scores: log-probability of each token of each text.
        mean: true to divide each sum by the text's number of tokens.

    Raises:
        DeftError: there is no text, or the model's numbers are not finite.
    """
    if not scores:
        raise DeftError("expected at least 1 text to choose from, got none")
    sums = totals(scores)
    if mean:
        sums = [total / len(tokens) for total, tokens in zip(sums, scores, strict=True)]
    if any(math.isnan(total) for total in sums):
        raise DeftError("the log-probabilities are NaN; check the model's weights")
    return sums.index(max(sums))


def ranking(scores: Iterable[Any], count: int, *, highest: bool) -> list[int]:
    """Return the indices of scores, the best first and equal ones in their order.

    2 0 1 0  ->  1 3 2 0, and with `highest`  0 2 1 3

    Args:
        scores: a number for each branch.
        count: number of branches.
        highest: true if a higher score is a better one, false if a lower one is.

    Raises:
        DeftError: there are more or fewer scores, or one is no number.
    """
    try:
        values = [float(score) for score in scores]
    except (TypeError, ValueError):
        raise DeftError(f"scores must be numbers, got {scores!r:.60}") from None
    if len(values) != count:
        raise DeftError(f"expected a score for each of {count}, got {len(values)}")
    if any(math.isnan(value) for value in values):
        raise DeftError(f"scores must be numbers, got NaN in {scores!r:.60}")
    sign = -1 if highest else 1
    return sorted(range(count), key=lambda index: sign * values[index])
