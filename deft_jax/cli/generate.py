"""`deft-jax generate`: prompts in, trees out."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from deft_jax.cli.interrupt import INTERRUPTED, Interrupt
from deft_jax.cli.prompts import read_prompts
from deft_jax.cli.view import View
from deft_jax.errors import CapacityError, DeftError

if TYPE_CHECKING:
    from deft_jax.capacity import Capacity
    from deft_jax.sampling.params import Sampling
    from deft_jax.strategies.parallel import BestOfN

_SAMPLING_OPTIONS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
)


def generate(options: argparse.Namespace) -> int:
    """Run the command and return its exit code.

    Raises:
        DeftError: an option, a prompt or the model cannot be used.
        OSError: a file cannot be read, or standard output not be written.
    """
    if options.answer_pattern is not None and options.strategy != "self-consistency":
        raise DeftError("--answer-pattern needs --strategy self-consistency")
    prompts = read_prompts(options)
    view = choose_view(options, prompts)
    interrupt = Interrupt(view.on_interrupt, view.restore_terminal)
    with view:
        sampling, strategy = _sampling(options), _strategy(options)
        model, tokenizer, dtype = _load(options, view)
        encoded = _encoded(options, prompts, tokenizer)
        capacity = _capacity(options, encoded, tokenizer, strategy)
        engine = _engine(options, model, tokenizer, capacity)
        with interrupt:
            trees = engine.generate(
                encoded,
                strategy,
                sampling,
                on_token=view.on_token,
                on_status=view.on_status,
                should_stop=interrupt.is_requested,
            )
    settings = {
        "version": version("deft-jax"),
        "model": options.model,
        "dtype": dtype,
        "strategy": {"name": options.strategy, **asdict(strategy)},
        "sampling": asdict(sampling),
        "interrupted": interrupt.is_requested(),
    }
    view.finish(trees, settings)
    return INTERRUPTED if interrupt.is_requested() else 0


def choose_view(options: argparse.Namespace, prompts: Sequence[str]) -> View:
    """Return the view for the options and for what standard output is."""
    from deft_jax.cli.plain_output import JsonOutput, TextStream, TreeOutput

    if options.json:
        return JsonOutput()
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console

        from deft_jax.cli.live_view import LiveView

        title = f"{options.model} · {options.strategy}, n = {options.n}"
        return LiveView(title, prompts, Console(no_color=options.no_color or None))
    if options.n == len(prompts) == 1:
        return TextStream()
    return TreeOutput(prompts)


def _sampling(options: argparse.Namespace) -> "Sampling":
    from deft_jax.sampling.params import Sampling

    return Sampling(**{name: getattr(options, name) for name in _SAMPLING_OPTIONS})


def _strategy(options: argparse.Namespace) -> "BestOfN":
    from deft_jax.strategies.parallel import BestOfN, SelfConsistency

    if options.strategy == "best-of-n":
        return BestOfN(options.n)
    if options.answer_pattern is None:
        return SelfConsistency(options.n)
    return SelfConsistency(options.n, options.answer_pattern)


def _load(options: argparse.Namespace, view: View) -> tuple[Any, Any, str]:
    """Return the model, its tokenizer and its dtype's name."""
    from deft_jax.cli.device import default_dtype
    from deft_jax.engine.compilation_cache import enable_compilation_cache
    from deft_jax.models.load import load_model

    enable_compilation_cache()
    dtype = options.dtype or default_dtype()
    return *load_model(options.model, dtype=dtype, progress=view.on_load), dtype


def _engine(
    options: argparse.Namespace, model: Any, tokenizer: Any, capacity: "Capacity | None"
) -> Any:
    from deft_jax.engine.engine import Engine

    implementation = options.implementation
    return Engine(model, tokenizer, capacity=capacity, implementation=implementation)


def _encoded(
    options: argparse.Namespace, prompts: Sequence[str], tokenizer: Any
) -> Sequence[Any]:
    """Return the prompts as the engine takes them: text, or the tokens of a chat."""
    if not options.chat:
        return prompts
    system = [{"role": "system", "content": options.system}] if options.system else []
    return [
        tokenizer.encode_chat([*system, {"role": "user", "content": prompt}])
        for prompt in prompts
    ]


def _capacity(
    options: argparse.Namespace,
    encoded: Sequence[Any],
    tokenizer: Any,
    strategy: "BestOfN",
) -> "Capacity | None":
    """Return the capacity that the options ask for, `None` to let the engine choose."""
    if options.max_context is None and options.page_size is None:
        return None
    from deft_jax.capacity import DEFAULT_PAGE_SIZE, Capacity

    lengths = [
        len(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        for prompt in encoded
    ]
    if options.max_context is not None:
        room = options.max_context - options.max_new_tokens
        if max(lengths) > room:
            raise CapacityError(
                f"the longest prompt has {max(lengths)} tokens, which with"
                f" --max-new-tokens {options.max_new_tokens} is above --max-context"
                f" {options.max_context}; raise it or generate fewer tokens"
            )
        lengths = [room] * len(lengths)
    page_size = options.page_size or DEFAULT_PAGE_SIZE
    return Capacity.for_requests(
        lengths, options.max_new_tokens, strategy.rows, strategy.nodes, page_size
    )
