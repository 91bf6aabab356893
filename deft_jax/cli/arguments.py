"""The options of the command line."""

import argparse
from importlib.metadata import version
from typing import Any, NoReturn

from deft_jax.attention.backend import IMPLEMENTATIONS
from deft_jax.attention.spec import HEADS
from deft_jax.cli.bench_arguments import add_bench
from deft_jax.cli.converters import integer, integers, non_empty, number, pattern
from deft_jax.cli.device_options import add_device_options, add_page_size

DEFAULT_MODEL = "smollm2-135m-instruct"

_MODEL_HELP = (
    "name, folder with config.json and *.safetensors, .gguf file, or Hugging Face id"
    f" (default: {DEFAULT_MODEL})"
)


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error on one line and exits with code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Print the error without the usage, which --help shows."""
        self.exit(2, f"deft-jax: error: {message}\n")


def build_parser() -> OneLineParser:
    """Return the parser of `deft-jax`; `command` names the chosen command."""
    parser = OneLineParser(
        prog="deft-jax", description="Tree decoding for large language models in JAX."
    )
    parser.add_argument(
        "--version", action="version", version=f"deft-jax {version('deft-jax')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(
        commands.add_parser(
            "generate",
            help="continue prompts with a tree of branches",
            description="Continue each prompt with a tree of branches that share the"
            " prompt's keys and values.",
            epilog="Without --prompt and --prompt-file the prompt is read from"
            " standard input, less one final line end. Ctrl-C ends the generation"
            " and prints what there is (exit code 130); a second one aborts.",
        )
    )
    info = commands.add_parser(
        "info",
        help="show devices, backends and what a model needs",
        description="Show the devices, the attention implementation, the model's size"
        " and how many tokens of KV cache fit in free memory.",
    )
    info.add_argument("--model", default=DEFAULT_MODEL, help=_MODEL_HELP)
    add_device_options(info, IMPLEMENTATIONS)
    info.add_argument("--json", action="store_true", help="print one JSON document")
    _add_tune(
        commands.add_parser(
            "tune",
            help="measure the kernels on this GPU and keep the fastest sizes",
            description="Measure the attention kernels' sizes on made-up trees and keep"
            " the fastest ones in a table that attention reads from then on.",
            epilog="The table is written after each number of queries, so that Ctrl-C"
            " loses little.",
        )
    )
    add_bench(
        commands.add_parser(
            "bench",
            help="measure decoding against other methods and write a report",
            description="Decode the trees of a workload with several methods, print a"
            " table and one JSON line, and write a page with plots.",
            epilog="The JSON is written after each run. docs/benchmarks.md says what"
            " the numbers mean.",
        ),
        DEFAULT_MODEL,
        _MODEL_HELP,
    )
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help=_MODEL_HELP)
    _add_prompt_options(parser.add_argument_group("prompt"))
    _add_strategy_options(parser.add_argument_group("strategy"))
    _add_sampling_options(parser.add_argument_group("sampling"))
    device = parser.add_argument_group("device")
    add_device_options(device, IMPLEMENTATIONS)
    device.add_argument(
        "--max-context",
        type=integer(1),
        metavar="TOKENS",
        help="make room for prompts that reach this length with their longest branch,"
        " so that they share a compilation (default: what the prompts need)",
    )
    device.add_argument(
        "--page-size",
        type=integer(1),
        metavar="TOKENS",
        help="tokens per KV page",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON document")
    output.add_argument("--no-color", action="store_true", help="do not use colours")


def _add_prompt_options(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="a prompt; several become several trees decoded together",
    )
    source.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a UTF-8 file"
    )
    group.add_argument(
        "--chat", action="store_true", help="apply the model's chat template"
    )
    group.add_argument(
        "--system", metavar="TEXT", help="system message of the chat template"
    )


def _add_strategy_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--strategy",
        choices=["best-of-n", "self-consistency"],
        default="best-of-n",
        help="how the branches compete (default: best-of-n)",
    )
    group.add_argument(
        "--n", type=integer(1), default=4, help="branches per prompt (default: 4)"
    )
    group.add_argument(
        "--answer-pattern",
        type=pattern,
        metavar="REGEX",
        help="finds the answer in a branch, for self-consistency",
    )


def _add_sampling_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of `Sampling`, whose defaults these repeat."""
    share = number("a number above 0 and up to 1", lambda value: 0 < value <= 1)
    options = [
        ("max-new-tokens", "N", integer(1), 256, "most tokens per branch"),
        (
            "temperature",
            "T",
            number("a number of at least 0", lambda value: 0 <= value < float("inf")),
            1.0,
            "divisor of the logits; 0 takes the likeliest token",
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
        ("seed", "S", integer(0, 2**32 - 1), 0, "of the random numbers"),
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


def _add_tune(parser: argparse.ArgumentParser) -> None:
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
        help="of queries and KV (default: %(default)s)",
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
