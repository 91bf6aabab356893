"""The commands of the command line and the options of each."""

import argparse
from collections.abc import Sequence
from typing import Any

from deft_jax.attention.names import IMPLEMENTATIONS
from deft_jax.cli.device_options import add_device_options, add_model
from deft_jax.cli.generate_arguments import add_generate
from deft_jax.cli.parser import CommandParser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options that a command line gives.

    Args:
        arguments: without the program's name; those of the process by default.

    Raises:
        SystemExit: after `--help`, `--version` and errors.
    """
    parser = build_parser()
    options, others = parser.parse_known_args(arguments)
    if others:
        is_prompt = options.command == "generate" and not others[0].startswith("-")
        hint = "; give a prompt by --prompt TEXT" if is_prompt else ""
        parser.error(f"unrecognized arguments: {' '.join(others)}{hint}")
    return options


def build_parser() -> CommandParser:
    """Return the parser of `deft-jax`; `command` names the chosen command."""
    parser = CommandParser(
        prog="deft-jax", description="Tree decoding for large language models in JAX."
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show the version and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "generate",
        add_options=add_generate,
        help="continue prompts with a tree of branches",
        description="Continue each prompt with a tree of branches that share the"
        " prompt's keys and values.",
        epilog="Without --prompt and --prompt-file the prompt is read from standard"
        " input, less one final line end. Ctrl-C ends the generation and prints what"
        " there is; a second one aborts. Exit codes: 1 if the model's numbers were not"
        " finite, 2 for an error, 130 after Ctrl-C, 143 after SIGTERM, 129 after"
        " SIGHUP.",
    )
    commands.add_parser(
        "chat",
        add_options=_add_chat,
        help="talk with a model; what was said is not read again",
        description="Talk with a model. Keys and values of the conversation are kept,"
        " so that each turn reads only what is new. /help lists the commands of the"
        " chat.",
        epilog="Without a terminal, turns are read from standard input line by line."
        " Ctrl-C stops an answer, Ctrl-D ends. A line that ends with a backslash goes"
        " on in the next one; lines between two lines of triple quotation marks are"
        " one message.",
    )
    commands.add_parser(
        "info",
        add_options=_add_info,
        help="show devices, backends and what a model needs",
        description="Show the devices, the attention implementation, the model's size"
        " and how many tokens of KV cache fit in free memory.",
    )
    commands.add_parser(
        "tune",
        add_options=_add_tune,
        help="measure the kernels on this GPU and keep the fastest sizes",
        description="Measure the attention kernels' sizes on made-up trees and keep the"
        " fastest ones in a table that attention reads from then on.",
        epilog="The table is written after each number of queries, so that Ctrl-C"
        " loses little.",
    )
    commands.add_parser(
        "bench",
        add_options=_add_bench,
        help="measure decoding against other methods and write a report",
        description="Decode the trees of a workload with several methods, print a"
        " table and one JSON line, and write a page with plots.",
        epilog="The JSON is written after each run. docs/benchmarks.md says what the"
        " numbers mean.",
    )
    return parser


class _Version(argparse.Action):
    """Prints the version of the installed package, which takes a while to look up."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from importlib.metadata import version

        print(f"deft-jax {version('deft-jax')}")
        parser.exit()


def _add_chat(parser: argparse.ArgumentParser) -> None:
    # The other commands need not wait for it.
    from deft_jax.cli.chat_arguments import add_chat

    add_chat(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_device_options(parser, IMPLEMENTATIONS)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _add_tune(parser: argparse.ArgumentParser) -> None:
    # It imports JAX, which the other commands' options need not wait for.
    from deft_jax.cli.tune_arguments import add_tune

    add_tune(parser)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    # It imports JAX and the recorded trees.
    from deft_jax.cli.bench_arguments import add_bench

    add_bench(parser)
