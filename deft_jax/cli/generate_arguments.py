"""The options of `deft-jax generate`."""

import argparse

from deft_jax.attention.names import IMPLEMENTATIONS
from deft_jax.capacity import DEFAULT_PAGE_SIZE
from deft_jax.cli.converters import assignment, integer, non_empty, number, pattern
from deft_jax.cli.device_options import add_device_options, add_model
from deft_jax.cli.strategies import STRATEGIES


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Add the options by groups."""
    add_model(parser)
    _add_prompt_options(parser.add_argument_group("prompt"))
    _add_strategy_options(parser.add_argument_group("strategy"))
    _add_sampling_options(parser.add_argument_group("sampling"))
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
    group.add_argument(
        "--special",
        action="store_true",
        help="read control tokens such as <|im_end|> in the prompt, for one that is"
        " already formatted; without this option, and in chats, they are plain text",
    )
    group.add_argument(
        "--chat", action="store_true", help="apply the model's chat template"
    )
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


def _add_sampling_options(group: argparse._ArgumentGroup) -> None:
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
    group.add_argument(
        "--page-size",
        type=integer(1),
        metavar="TOKENS",
        help=f"tokens per KV page (default: {DEFAULT_PAGE_SIZE})",
    )


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--json", action="store_true", help="print one JSON document")
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
        help="write the outcome to a file: the JSON document with --json, otherwise the"
        " trees with the whole text of every branch",
    )
    group.add_argument("--no-color", action="store_true", help="do not use colours")
