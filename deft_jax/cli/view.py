"""What the command line shows of a generation, whatever it shows it on."""

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import deft_jax
from deft_jax.results.counters import Status
from deft_jax.results.render import Line, Span, count, tree_lines
from deft_jax.results.terminal_text import head, one_line, printable
from deft_jax.results.tree_node import TokenEvent

EXCERPT_CELLS = 240
"""Cells of a branch's text in a picture of the tree, unless all of it is asked for."""


class View:
    """Shows the loading of a model, the growth of its trees and the outcome.

    It is entered before the model is loaded and left before `finish`. This one shows
    nothing.
    """

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what is redrawn."""

    def on_load(self, done: int, total: int) -> None:
        """Take note that `done` of `total` tensors are loaded."""

    def on_status(self, status: Status) -> None:
        """Take note of the counters of the engine."""

    def on_token(self, event: TokenEvent) -> None:
        """Take note of a token."""

    def on_interrupt(self, number: int) -> None:
        """Take note that a signal has asked to stop; called from another thread.

        Args:
            number: the signal.
        """

    def restore_terminal(self) -> None:
        """Make the terminal usable after an abort; called from another thread."""

    def finish(
        self, trees: "Sequence[deft_jax.GenerationTree]", settings: Mapping[str, Any]
    ) -> None:
        """Write the outcome to standard output.

        Args:
            trees: one per prompt.
            settings: what the command ran with, ready for JSON.
        """


def stopping(number: int) -> str:
    """Return what is said when a signal has asked to stop."""
    if number == signal.SIGINT:
        return "stopping; press Ctrl-C again to abort"
    return "stopping; a second signal aborts"


def counters(status: Status) -> str:
    """Return the counters of decoding on one line, bytes of KV once it is done."""
    parts = [
        count(status.generated_tokens, "token"),
        f"{status.tokens_per_s:.1f} tokens/s",
        f"{status.live_branches} live",
        f"KV pages {status.pages_used}/{status.pages_total}",
        f"KV reads saved {status.kv_read_saved:.0%}",
    ]
    if status.phase == "done":
        parts[2] = f"{status.elapsed_s:.1f} s"
        parts[4] = (
            f"KV read {_size(status.kv_bytes_read)}, one sequence at a time"
            f" {_size(status.kv_bytes_read_per_sequence)},"
            f" {status.kv_read_saved:.0%} saved"
        )
    return " · ".join(parts)


def _size(num_bytes: float) -> str:
    """Return a number of bytes in the largest decimal unit that it fills."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} PB"


def outcome_lines(
    trees: "Sequence[deft_jax.GenerationTree]",
    prompts: Sequence[str],
    width: int,
    max_text: int | None = EXCERPT_CELLS,
) -> Iterator[Line]:
    """Yield each tree with its branches, then the text of its best branch in full.

    One prompt with one branch is its text alone, and its notice if it has one.

    Args:
        trees: one per prompt.
        prompts: what the user asked, without a chat template.
        width: cells of a line of the tree; lines of the best branch keep their length.
        max_text: cells of text per branch, None for all of it.
    """
    for index, (tree, prompt) in enumerate(zip(trees, prompts, strict=True)):
        text = printable(tree.path_text(tree.best()))
        if index:
            yield ()
        if len(tree.leaves()) > 1:
            yield from tree_lines(tree, width, max_text, prompt)
            yield ()
            yield (Span(f"best branch ({tree.best().id}):", "label"),)
        elif len(trees) > 1:
            yield (Span(head(one_line(prompt), width), "prompt"),)
        for line in text.strip("\n").split("\n"):
            yield (Span(line),)
        if len(tree.leaves()) == 1 and tree.notice is not None:
            yield (Span(one_line(f"notice: {tree.notice}"), "notice"),)


def outcome_document(
    trees: "Sequence[deft_jax.GenerationTree]", settings: Mapping[str, Any]
) -> str:
    """Return one JSON document; other scripts than Latin are escapes in it."""
    results = [tree.to_dict() for tree in trees]
    return json.dumps({**settings, "results": results}, indent=2, allow_nan=False)


def write_progress(message: str) -> None:
    """Write one line about the run to stderr."""
    print(f"deft-jax: {message}", file=sys.stderr, flush=True)
