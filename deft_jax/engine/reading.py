"""What is told of a prompt that is read, and nothing generated."""

from typing import NamedTuple


class Reading(NamedTuple):
    """What was asked about a prompt that was read, and nothing generated.

    Attributes:
        logprobs: natural log-probabilities of the prompt's tokens from `score_from`
            on, each given all tokens before it.
        top: the most likely next tokens with their log-probabilities, the likeliest
            first.
    """

    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[int, float], ...] = ()
