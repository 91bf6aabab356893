"""Options that several commands share."""

import argparse
from collections.abc import Sequence

from deft_jax.capacity import DEFAULT_PAGE_SIZE
from deft_jax.cli.converters import integer, non_empty

DEFAULT_MODEL = "smollm2-135m-instruct"

MODEL_HELP = (
    "name, folder with config.json and *.safetensors, .gguf file, or Hugging Face id"
    f" (default: {DEFAULT_MODEL})"
)


def add_model(parser: argparse._ActionsContainer) -> None:
    """Add the name of the model."""
    parser.add_argument(
        "--model",
        type=non_empty,
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=MODEL_HELP,
    )


def add_device_options(
    group: argparse._ActionsContainer, implementations: Sequence[str]
) -> None:
    """Add what weights are stored in and what attends."""
    group.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype of weights and KV (default: float32 on a CPU, where the others are"
        " slower for few branches and need more memory at their peak; bfloat16"
        " elsewhere)",
    )
    group.add_argument(
        "--implementation",
        choices=implementations,
        help="implementation of attention (default: the fastest one of the device)",
    )


def add_page_size(group: argparse._ActionsContainer) -> None:
    """Add the page size, with its default."""
    group.add_argument(
        "--page-size",
        type=integer(1),
        default=DEFAULT_PAGE_SIZE,
        metavar="TOKENS",
        help="tokens per KV page (default: %(default)s)",
    )
