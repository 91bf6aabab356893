"""The options of `Sampling`, which several commands share, and what is made of them."""

import argparse
import dataclasses
from typing import Any

import deft_jax
from deft_jax.cli.converters import integer, non_empty, number


def sampling_values(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Sampling` that the options give."""
    names = [field.name for field in dataclasses.fields(deft_jax.Sampling)]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def sampling_of(options: argparse.Namespace) -> "deft_jax.Sampling":
    """Return the sampling that the options ask for."""
    return deft_jax.Sampling(**sampling_values(options))


def add_sampling_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of `Sampling`, whose defaults and limits these repeat."""
    share = number("a number above 0 and up to 1", lambda value: 0 < value <= 1)
    penalty = number("a number from -2 to 2", lambda value: -2 <= value <= 2)
    options = [
        ("max-new-tokens", "N", integer(1), 256, "most tokens per branch"),
        (
            "temperature",
            "T",
            number("a number of at least 0", lambda value: 0 <= value < float("inf")),
            1.0,
            "divisor of the logits; 0 takes the likeliest token, which makes the"
            " branches of best-of-n and self-consistency equal",
        ),
        ("top-k", "K", integer(0), 0, "keep the K likeliest tokens; 0 keeps all"),
        ("top-p", "P", share, 1.0, "keep the likeliest tokens that sum to P"),
        (
            "min-p",
            "P",
            number("a number from 0 to 1", lambda value: 0 <= value <= 1),
            0.0,
            "keep tokens with P times the largest probability",
        ),
        (
            "repetition-penalty",
            "R",
            number("a number above 0", lambda value: 0 < value < float("inf")),
            1.0,
            "above 1 makes tokens that were seen less likely",
        ),
        (
            "presence-penalty",
            "P",
            penalty,
            0.0,
            "taken from the logits of tokens that were generated before",
        ),
        (
            "frequency-penalty",
            "P",
            penalty,
            0.0,
            "taken from them once for each time",
        ),
        ("seed", "S", integer(0, 2**32 - 1), 0, "seed of the random numbers"),
    ]
    for name, metavar, convert, default, text in options:
        group.add_argument(
            f"--{name}",
            metavar=metavar,
            type=convert,
            default=default,
            help=f"{text} (default: %(default)s)",
        )
    group.add_argument(
        "--stop",
        action="append",
        type=non_empty,
        default=[],
        metavar="TEXT",
        help="end a branch before this text; may be repeated",
    )
    group.add_argument(
        "--stop-token-id",
        action="append",
        type=integer(0),
        default=[],
        dest="stop_token_ids",
        metavar="ID",
        help="end a branch with this token; may be repeated",
    )
