"""Options that several commands share."""

import argparse
from collections.abc import Sequence

from deft_jax.capacity import DEFAULT_PAGE_SIZE
from deft_jax.cli.converters import assignment, integer, non_empty

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


def add_optional_page_size(group: argparse._ActionsContainer) -> None:
    """Add the page size, None if it is not given."""
    group.add_argument(
        "--page-size",
        type=integer(1),
        metavar="TOKENS",
        help=f"tokens per KV page (default: {DEFAULT_PAGE_SIZE})",
    )


def add_template_options(group: argparse._ActionsContainer) -> None:
    """Add what a chat template is given beside the messages of the conversation."""
    group.add_argument(
        "--system", metavar="TEXT", help="system message of the chat template"
    )
    group.add_argument(
        "--template-arg",
        action="append",
        type=assignment,
        default=[],
        metavar="KEY=VALUE",
        help="a variable of the chat template, such as enable_thinking=false; the"
        " value is JSON, or else text; may be repeated",
    )
