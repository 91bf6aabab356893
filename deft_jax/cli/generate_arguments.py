"""The options of `deft-jax generate`."""

import argparse

from deft_jax.attention.names import IMPLEMENTATIONS
from deft_jax.cli.converters import integer, non_empty, pattern
from deft_jax.cli.device_options import (
    add_device_options,
    add_model,
    add_optional_page_size,
    add_template_options,
)
from deft_jax.cli.sampling_options import add_sampling_options
from deft_jax.cli.strategies import STRATEGIES


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Add the options by groups."""
    add_model(parser)
    _add_prompt_options(parser.add_argument_group("prompt"))
    _add_strategy_options(parser.add_argument_group("strategy"))
    sampling = parser.add_argument_group("sampling")
    add_sampling_options(sampling)
    _add_logprobs(sampling)
    _add_device_options(parser.add_argument_group("device"))
    _add_output_options(parser.add_argument_group("output"))


def _add_prompt_options(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="a prompt; may be repeated, for several trees decoded together",
    )
    source.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a UTF-8 file"
    )
    source.add_argument(
        "--input",
        type=non_empty,
        metavar="FILE",
        help="read requests from a file of JSON lines, or from standard input for -;"
        " each has a prompt (a text or token ids) or messages (with roles), and may"
        " have an id, a priority, n and the options of sampling",
    )
    group.add_argument(
        "--special",
        action="store_true",
        help="read control tokens such as <|im_end|> in the prompt, for one that is"
        " already formatted; without this option, and in chats, they are plain text",
    )
    group.add_argument(
        "--chat", action="store_true", help="apply the model's chat template"
    )
    add_template_options(group)
    group.add_argument(
        "--tools",
        metavar="FILE",
        help="JSON file with a list of tools for the chat template",
    )


def _add_strategy_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--strategy",
        choices=list(STRATEGIES),
        default="best-of-n",
        help="how the branches compete (default: %(default)s)",
    )
    group.add_argument(
        "--n", type=integer(1), default=4, help="branches per prompt (default: 4)"
    )
    group.add_argument(
        "--answer-pattern",
        type=pattern,
        metavar="REGEX",
        help="finds the answer in a branch, for self-consistency (default: the last"
        " number)",
    )


def _add_logprobs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--logprobs",
        type=integer(0, 20),
        default=0,
        metavar="K",
        help="write the K most likely tokens in the place of each token, which needs"
        " --json (default: %(default)s)",
    )


def _add_device_options(group: argparse._ArgumentGroup) -> None:
    add_device_options(group, IMPLEMENTATIONS)
    group.add_argument(
        "--max-context",
        type=integer(1),
        metavar="TOKENS",
        help="make room for prompts that reach this length with their longest branch,"
        " so that they share a compilation; a model with LongRoPE then takes its"
        " factors for this length (default: what the prompts need, and the model's"
        " context)",
    )
    add_optional_page_size(group)


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document; with --input one line for each request",
    )
    group.add_argument(
        "--jsonl",
        action="store_true",
        help="print one line of JSON for each request, as soon as it ends",
    )
    group.add_argument(
        "--full",
        action="store_true",
        help="show the whole text of every branch; by default long ones are shown by"
        " their two ends, except for the best branch",
    )
    group.add_argument(
        "--output",
        type=non_empty,
        metavar="FILE",
        help="write the outcome to a file: the JSON document with --json, the lines"
        " with --jsonl, otherwise the trees with the whole text of every branch",
    )
    group.add_argument("--no-color", action="store_true", help="do not use colours")
