"""The options of `deft-jax bench`."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from deft_jax.accounting.methods import METHODS
from deft_jax.bench.trees.draft_templates import (
    DRAFT_COUNTS,
    DRAFT_TREES,
    PROMPT_TOKENS,
)
from deft_jax.bench.trees.templates import REASONING_TASKS
from deft_jax.cli.converters import integer, integers, names, non_empty
from deft_jax.cli.device_options import (
    add_device_options,
    add_model,
    add_page_size,
)
from deft_jax.cli.parser import AddOptions
from deft_jax.models.config import shapes

IMPLEMENTATIONS = ("mosaic_gpu", "xla")
"""The implementations that are compared: the oracle is no way to decode."""

DRAFT_METHODS = tuple(name for name in METHODS if name != "flash_decoding")
"""The methods that can verify several drafts of a row in one step."""


@dataclasses.dataclass(frozen=True)
class Sized:
    """A default that depends on whether --quick is given.

    Attributes:
        full: default without --quick.
        quick: default with --quick, small enough for a laptop.
    """

    full: Any
    quick: Any

    def __str__(self) -> str:
        """Return both defaults as the help shows them."""
        return f"{_text(self.full)}; with --quick {_text(self.quick)}"


def settle(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options with a value for each default that is `Sized`.

    What the user gave stays, with --quick too.
    """

    def settled(value):
        if isinstance(value, Sized):
            return value.quick if options.quick else value.full
        return value

    known = {name: settled(value) for name, value in vars(options).items()}
    if known.get("workload") == "trees" and not (known["levels"] or known["searches"]):
        known["levels"] = ["1,2,4;64,6,6"] if options.quick else []
    return argparse.Namespace(**known)


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the workloads, each a command of its own, and their options."""
    workloads = parser.add_subparsers(
        dest="workload", required=True, metavar="WORKLOAD"
    )
    added: dict[str, tuple[str, AddOptions]] = {
        "few-shot": ("a prompt that branches once", _add_few_shot),
        "reasoning": ("recorded tree searches", _add_reasoning),
        "speculative": ("draft trees that are verified", _add_speculative),
        "trees": ("level trees and random searches", _add_trees),
    }
    for name, (text, add_options) in added.items():
        one = workloads.add_parser(name, help=text, description=f"Decode {text}.")
        add_options(one)
        _add_decoding(one, DRAFT_METHODS if name == "speculative" else METHODS)
        model = one.add_mutually_exclusive_group()
        add_model(model)
        model.add_argument(
            "--shape",
            choices=list(shapes.SHAPES),
            help="a published shape with random weights, in place of a model",
        )
        _add_common(one, name)
    text = "the attention kernels alone, on a GPU"
    attention = workloads.add_parser(
        "attention", help=text, description=f"Time {text}."
    )
    _add_sized(
        attention,
        ("cases", "N,N,...", str, "numbers of the trees"),
        Sized("all", "0,16,41"),
    )
    _add_common(attention, "attention")
    text = "SmolLM2 on the CPU against its ceilings"
    cpu = workloads.add_parser("cpu", help=text, description=f"Time {text}.")
    _add_common(cpu, "cpu")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _add_common(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--output",
        type=non_empty,
        metavar="FOLDER",
        default=f"bench-{name}",
        help="folder of the report (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few and small trees, for a laptop"
    )


def _add_decoding(parser: argparse.ArgumentParser, methods: tuple[str, ...]) -> None:
    parser.add_argument(
        "--methods",
        type=names(*methods),
        default=list(methods),
        metavar="M,M,...",
        help=f"methods to compare (default: {','.join(methods)})",
    )
    add_page_size(parser)
    add_device_options(parser, IMPLEMENTATIONS)


def _add_few_shot(parser: argparse.ArgumentParser) -> None:
    _add_sized(
        parser,
        ("prompt-tokens", "P,P,...", integers(1), "lengths of the prompt"),
        Sized([4000], [64]),
    )
    _add_sized(
        parser,
        ("widths", "W,W,...", integers(1), "branches"),
        Sized([20, 30, 50], [4]),
    )
    _add_sized(
        parser,
        ("steps", "S", integer(2), "tokens per branch"),
        Sized(399, 12),
    )


def _add_reasoning(parser: argparse.ArgumentParser) -> None:
    _add_sized(
        parser,
        ("tasks", "T,T", names(*REASONING_TASKS), "recorded tasks"),
        Sized(list(REASONING_TASKS), ["docmerge"]),
    )
    _add_sized(
        parser,
        ("trees", "N,N,...", integers(0, 9), "trees of each task, from 0 to 9"),
        Sized(list(range(10)), [4]),
    )
    _add_sized(
        parser,
        ("shorten", "F", integer(1), "divide all lengths by this"),
        Sized(1, 60),
    )


def _add_speculative(parser: argparse.ArgumentParser) -> None:
    counts = ", ".join(map(str, DRAFT_COUNTS))
    _add_sized(
        parser,
        ("drafts", "T,T,...", integers(1), f"tokens verified per step, of {counts}"),
        Sized(list(DRAFT_COUNTS), [32]),
    )
    _add_sized(
        parser,
        ("shapes", "S,S", names(*DRAFT_TREES), "of the draft trees"),
        Sized(list(DRAFT_TREES), ["real"]),
    )
    _add_sized(
        parser,
        ("prompt-tokens", "P", integer(1), "length of the prompt"),
        Sized(PROMPT_TOKENS, 64),
    )
    _add_sized(
        parser,
        ("max-tokens", "N", integer(2), "length of the text, the prompt counted"),
        Sized(6000, 88),
    )


def _add_trees(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--levels",
        action="append",
        default=[],
        metavar="N,N,...;T,T,...",
        help="a level tree: nodes of each level, tokens of each of its nodes; may be"
        " repeated",
    )
    parser.add_argument(
        "--searches",
        action="append",
        default=[],
        metavar="W,D,B,P,S",
        help="a random search: width, depth, branch rate, prune rate, seed; may be"
        " repeated",
    )


def _add_sized(
    parser: argparse.ArgumentParser,
    option: tuple[str, str, Callable[[str], Any], str],
    default: Sized,
) -> None:
    name, metavar, convert, text = option
    parser.add_argument(
        f"--{name}",
        metavar=metavar,
        type=convert,
        default=default,
        help=f"{text} (default: %(default)s)",
    )
