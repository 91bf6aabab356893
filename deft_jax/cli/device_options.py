"""Options that several commands share."""

import argparse
from collections.abc import Sequence

from deft_jax.cli.converters import integer


def add_device_options(
    group: argparse._ActionsContainer, implementations: Sequence[str]
) -> None:
    """Add what weights are stored in and what attends."""
    group.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of weights and KV (default: float32 on CPU, bfloat16 elsewhere)",
    )
    group.add_argument(
        "--implementation",
        choices=implementations,
        help="of the attention (default: the fastest one for the device)",
    )


def add_page_size(group: argparse._ActionsContainer) -> None:
    """Add the page size, with its default."""
    group.add_argument(
        "--page-size",
        type=integer(1),
        default=64,
        metavar="TOKENS",
        help="tokens per KV page (default: %(default)s)",
    )
