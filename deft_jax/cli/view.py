"""What the command line shows of a generation, whatever it shows it on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.render import Line, Span, count, tree_lines
from deft_jax.results.terminal_text import head, one_line, printable
from deft_jax.results.tree_node import TokenEvent

_MAX_TEXT = 240


class View:
    """Shows the loading of a model, the growth of its trees and the outcome.

    It is entered before the model is loaded and left before `finish`. This one shows
    nothing.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def on_load(self, done: int, total: int) -> None:
        """Take note that `done` of `total` tensors are loaded."""

    def on_status(self, status: Status) -> None:
        """Take note of the counters of the engine."""

    def on_token(self, event: TokenEvent) -> None:
        """Take note of a token."""

    def on_interrupt(self) -> None:
        """Take note that the user has asked to stop; called from another thread."""

    def restore_terminal(self) -> None:
        """Make the terminal usable after an abort; called from another thread."""

    def finish(
        self, trees: Sequence[GenerationTree], settings: Mapping[str, Any]
    ) -> None:
        """Write the outcome to standard output.

        Args:
            trees: one per prompt.
            settings: what the command ran with, ready for JSON.
        """


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
    trees: Sequence[GenerationTree], prompts: Sequence[str], width: int
) -> Iterator[Line]:
    """Yield each tree with excerpts, then the text of its best branch in full.

    One prompt with one branch is its text alone. Lines of the full text keep their
    length.
    """
    for index, (tree, prompt) in enumerate(zip(trees, prompts, strict=True)):
        text = printable(tree.path_text(tree.best()))
        if index:
            yield ()
        if len(tree.leaves()) > 1:
            yield from tree_lines(tree, width, _MAX_TEXT, prompt)
            yield ()
            yield (Span(f"best branch ({tree.best().id}):", "label"),)
        elif len(trees) > 1:
            yield (Span(head(one_line(prompt), width), "prompt"),)
        for line in text.strip("\n").split("\n"):
            yield (Span(line),)
