"""The options of `deft-jax tune`."""

import argparse

from deft_jax.attention.spec import HEADS
from deft_jax.cli.converters import integer, integers
from deft_jax.cli.device_options import add_page_size


def add_tune(parser: argparse.ArgumentParser) -> None:
    """Add what to measure and where to keep it."""
    parser.add_argument(
        "--model-shape",
        choices=list(HEADS),
        default="llama3_8b",
        help="attention heads to measure (default: %(default)s)",
    )
    parser.add_argument(
        "--queries",
        type=integers(1),
        default=[16, 64, 1024],
        metavar="Q,Q,...",
        help="query tokens per step (default: 16,64,1024)",
    )
    add_page_size(parser)
    parser.add_argument(
        "--window",
        type=integer(1),
        metavar="TOKENS",
        help="measure attention with this window (default: without one)",
    )
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float16"],
        default="bfloat16",
        help="dtype of queries and KV (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="table to write or extend (default: the one of this GPU in the user's"
        " cache folder)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure fewer sizes on one tree"
    )
