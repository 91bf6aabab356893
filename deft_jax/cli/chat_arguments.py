"""The options of `deft-jax chat`."""

import argparse

from deft_jax.attention.names import IMPLEMENTATIONS
from deft_jax.cli.converters import integer
from deft_jax.cli.device_options import (
    add_device_options,
    add_model,
    add_optional_page_size,
    add_template_options,
)
from deft_jax.cli.sampling_options import add_sampling_options

DEFAULT_CONTEXT = 4096
"""Most tokens of a conversation for which there is room by default."""


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Add the options by groups; answers may be longer than those of `generate`."""
    add_model(parser)
    add_template_options(parser.add_argument_group("conversation"))
    add_sampling_options(parser.add_argument_group("sampling"))
    parser.set_defaults(max_new_tokens=512, temperature=0.7)
    group = parser.add_argument_group("device")
    add_device_options(group, IMPLEMENTATIONS)
    group.add_argument(
        "--max-context",
        type=integer(1),
        metavar="TOKENS",
        help="make room for a conversation of this length, its answers counted"
        f" (default: {DEFAULT_CONTEXT}, or the model's context if that is shorter)",
    )
    group.add_argument(
        "--max-forks",
        type=integer(1),
        default=8,
        metavar="N",
        help="make room for this many answers of /fork (default: %(default)s)",
    )
    add_optional_page_size(group)
