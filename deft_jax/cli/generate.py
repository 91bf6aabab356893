"""`deft-jax generate`: prompts in, trees out."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import deft_jax
from deft_jax.cli.interrupt import Interrupt, exit_code
from deft_jax.cli.opening import limit_context, open_chosen
from deft_jax.cli.outcome_file import check_writable, write_outcome
from deft_jax.cli.prompts import encode_prompts, read_prompts, read_tools
from deft_jax.cli.sampling_options import sampling_of
from deft_jax.cli.strategies import STRATEGIES
from deft_jax.cli.view import View, write_progress
from deft_jax.errors import CapacityError, DeftError

NOT_FINITE = 1
"""Exit code if numbers of the model were not finite."""


def generate(options: argparse.Namespace) -> int:
    """Run the command and return its exit code.

    Raises:
        DeftError: an option, a prompt or the model cannot be used.
        OSError: a file cannot be read, or the outcome not be written.
    """
    _check_options(options)
    if options.input is not None or options.jsonl:
        from deft_jax.cli.batch import generate_lines

        options.json |= options.jsonl
        return generate_lines(options)
    prompts = read_prompts(options)
    tools = read_tools(options)
    with Interrupt() as interrupt:
        view = choose_view(options, prompts)
        interrupt.on_abort = view.restore_terminal
        with view:
            sampling = sampling_of(options)
            strategy = STRATEGIES[options.strategy](options)
            opened = limit_context(open_chosen(options), options.max_context)
            encoded = encode_prompts(options, prompts, tools, opened.tokenizer)
            capacity = _capacity(options, encoded, opened, strategy)
            engine = deft_jax.Engine(
                opened.outline(),
                opened.tokenizer,
                capacity=capacity,
                implementation=options.implementation,
            )
            # Programs are compiled, or read from the cache, while weights are loaded.
            engine.compile_ahead(encoded, strategy, sampling)
            engine.model = opened.load(view.on_load)
            with interrupt.softly(view.on_interrupt):
                trees = engine.generate(
                    encoded,
                    strategy,
                    sampling,
                    on_token=view.on_token,
                    on_status=view.on_status,
                    should_stop=interrupt.is_requested,
                )
    settings = {
        "version": _version(),
        "model": options.model,
        "dtype": opened.dtype.name,
        "strategy": {"name": options.strategy, **asdict(strategy)},
        "sampling": asdict(sampling),
        "interrupted": interrupt.is_requested(),
    }
    if options.output is not None:
        write_outcome(options.output, options.json, prompts, trees, settings)
    view.finish(trees, settings)
    if interrupt.requested is not None:
        return exit_code(interrupt.requested)
    return NOT_FINITE if any(map(_is_not_finite, trees)) else 0


def choose_view(options: argparse.Namespace, prompts: Sequence[str]) -> View:
    """Return the view for the options and for what standard output is."""
    from deft_jax.cli.plain_output import (
        JsonOutput,
        ProgressLines,
        TextStream,
        TreeOutput,
    )

    to_file = options.output is not None
    if options.json and not to_file:
        return JsonOutput()
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console

        from deft_jax.cli.live_view import LiveView

        title = f"{options.model} · {options.strategy}, n = {options.n}"
        console = Console(no_color=options.no_color or None)
        return LiveView(title, prompts, console, options.full)
    if to_file:
        return ProgressLines()
    if options.n == len(prompts) == 1:
        return TextStream()
    return TreeOutput(prompts, options.full)


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything takes time."""
    if options.answer_pattern is not None and options.strategy != "self-consistency":
        raise DeftError("--answer-pattern needs --strategy self-consistency")
    for name in ("system", "template_arg", "tools"):
        if getattr(options, name) and not options.chat and options.input is None:
            flag = "--" + name.replace("_", "-")
            raise DeftError(f"{flag} needs --chat, which applies the chat template")
    if options.special and options.chat:
        raise DeftError(
            "--special is for prompts that are already formatted, --chat formats them;"
            " give one of the two"
        )
    if options.logprobs and not (options.json or options.jsonl):
        raise DeftError("--logprobs needs --json, which writes them")
    if options.output is not None:
        check_writable(options.output)
    if options.n > 1 and (options.temperature == 0 or options.top_k == 1):
        cause = "--temperature 0" if options.temperature == 0 else "--top-k 1"
        write_progress(
            f"{cause} takes the likeliest token everywhere, so that the {options.n}"
            " branches of a prompt are equal; sample, or give --n 1"
        )


def _capacity(
    options: argparse.Namespace,
    encoded: Sequence[Any],
    opened: Any,
    strategy: "deft_jax.BestOfN",
) -> "deft_jax.Capacity | None":
    """Return the capacity that the options ask for, None to let the engine choose.

    Args:
        options: what the command line asks for.
        encoded: the prompts, as text or as tokens.
        opened: the `OpenedModel` that `open_chosen` returns.
        strategy: decides about the branches.
    """
    if options.max_context is None and options.page_size is None:
        return None
    from deft_jax.capacity import DEFAULT_PAGE_SIZE
    from deft_jax.strategies.traits import footprint_of

    lengths = [
        len(opened.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        for prompt in encoded
    ]
    if options.max_context is not None:
        _check_longest(options, max(lengths))
        lengths = [options.max_context - options.max_new_tokens] * len(lengths)
    page_size = options.page_size or DEFAULT_PAGE_SIZE
    needs = footprint_of(strategy)
    return deft_jax.Capacity.for_requests(
        lengths,
        options.max_new_tokens,
        needs.rows,
        needs.nodes,
        page_size,
        pages=needs.pages(options.max_new_tokens, page_size),
    )


def _check_longest(options: argparse.Namespace, longest: int) -> None:
    """Refuse a --max-context that a prompt with its answer exceeds."""
    if longest > options.max_context - options.max_new_tokens:
        raise CapacityError(
            f"the longest prompt has {longest} tokens, which with --max-new-tokens"
            f" {options.max_new_tokens} is above --max-context {options.max_context};"
            " raise it or generate fewer tokens"
        )


def _is_not_finite(tree: "deft_jax.GenerationTree") -> bool:
    return any(leaf.finish_reason == "not-finite" for leaf in tree.leaves())


def _version() -> str:
    from importlib.metadata import version

    return version("deft-jax")
