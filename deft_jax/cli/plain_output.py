"""Views for files and pipes: text or JSON on stdout, progress lines on stderr."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from deft_jax.cli.view import (
    EXCERPT_CELLS,
    View,
    counters,
    outcome_document,
    outcome_lines,
    stopping,
    write_progress,
)
from deft_jax.results.counters import Phase, Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.render import plain
from deft_jax.results.terminal_text import one_line, printable
from deft_jax.results.tree_node import TokenEvent

_WIDTH = 100
_SECONDS_BETWEEN_LINES = 10.0


class ProgressLines(View):
    """Writes a line to stderr for every phase, and every ten seconds in a long one.

    What is compiled, and how long that took, is told at once.
    """

    def __init__(self):
        """Begin with no phase."""
        self._phase: Phase | None = None
        self._message = ""
        self._next_line_at = 0.0

    def on_load(self, done: int, total: int) -> None:
        """Report the last tensor."""
        if done == total:
            write_progress(f"loaded {total} tensors")

    def on_status(self, status: Status) -> None:
        """Report a new phase, or the counters if the last line is old."""
        now = time.monotonic()
        is_news = status.phase == "compile" and status.message != self._message
        if status.phase == self._phase and not is_news and now < self._next_line_at:
            return
        is_decoding = status.phase == "done" or status.phase == self._phase == "decode"
        message = counters(status) if is_decoding else status.message
        if message:
            write_progress(one_line(message))
        self._phase, self._message = status.phase, status.message
        self._next_line_at = now + _SECONDS_BETWEEN_LINES

    def on_interrupt(self, number: int) -> None:
        """Say that the end is near."""
        write_progress(stopping(number))


class TreeOutput(ProgressLines):
    """Writes the trees as plain text when they are done."""

    def __init__(self, prompts: Sequence[str], full: bool = False):
        """Prepare to write.

        Args:
            prompts: what the user asked, without a chat template.
            full: write the whole text of every branch.
        """
        super().__init__()
        self._prompts = prompts
        self._max_text = None if full else EXCERPT_CELLS

    def finish(
        self, trees: Sequence[GenerationTree], settings: Mapping[str, Any]
    ) -> None:
        """Write every tree and the text of its best branch."""
        for line in outcome_lines(trees, self._prompts, _WIDTH, self._max_text):
            print(plain(line))


class TextStream(ProgressLines):
    """Writes the text of the only branch as it is generated."""

    def __init__(self):
        """Begin with nothing written."""
        super().__init__()
        self._written = ""
        self._done: Status | None = None

    def on_status(self, status: Status) -> None:
        """Report as other views do, but the end only behind the text."""
        if status.phase == "done":
            self._done = status
        else:
            super().on_status(status)

    def on_token(self, event: TokenEvent) -> None:
        """Write the new text."""
        self._write(event.text)

    def finish(
        self, trees: Sequence[GenerationTree], settings: Mapping[str, Any]
    ) -> None:
        """Write what an interrupt held back, and end the last line."""
        for tree in trees:
            text = tree.path_text(tree.best())
            self._write(text.removeprefix(self._written))
        if not self._written.endswith("\n"):
            print(flush=True)
        for tree in trees:
            if tree.notice is not None:
                write_progress(one_line(tree.notice))
        if self._done is not None:
            super().on_status(self._done)

    def _write(self, text: str) -> None:
        self._written += text
        print(printable(text), end="", flush=True)


class JsonOutput(ProgressLines):
    """Writes one JSON document when the trees are done."""

    def finish(
        self, trees: Sequence[GenerationTree], settings: Mapping[str, Any]
    ) -> None:
        """Write the settings and the trees."""
        print(outcome_document(trees, settings))
