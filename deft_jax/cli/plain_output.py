"""Views for files and pipes: text or JSON on stdout, progress lines on stderr."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from deft_jax.cli.view import View, counters, outcome_lines
from deft_jax.results.counters import Phase, Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.render import plain
from deft_jax.results.terminal_text import one_line, printable
from deft_jax.results.tree_node import TokenEvent

_WIDTH = 100
_SECONDS_BETWEEN_LINES = 10.0


class ProgressLines(View):
    """Writes a line to stderr for every phase, and every ten seconds in a long one."""

    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._next_line_at = 0.0

    def on_load(self, done: int, total: int) -> None:
        """Report the last tensor."""
        if done == total:
            write_progress(f"loaded {total} tensors")

    def on_status(self, status: Status) -> None:
        """Report a new phase, or the counters if the last line is old."""
        now = time.monotonic()
        if status.phase == self._phase and now < self._next_line_at:
            return
        is_decoding = status.phase == "done" or status.phase == self._phase == "decode"
        message = counters(status) if is_decoding else status.message
        if message:
            write_progress(one_line(message))
        self._phase, self._next_line_at = status.phase, now + _SECONDS_BETWEEN_LINES

    def on_interrupt(self) -> None:
        """Say that the end is near."""
        write_progress("stopping; press Ctrl-C again to abort")


class TreeOutput(ProgressLines):
    """Writes the trees as plain text when they are done."""

    def __init__(self, prompts: Sequence[str]) -> None:
        super().__init__()
        self._prompts = prompts

    def finish(
        self, trees: Sequence[GenerationTree], settings: Mapping[str, Any]
    ) -> None:
        """Write every tree and the text of its best branch."""
        for line in outcome_lines(trees, self._prompts, _WIDTH):
            print(plain(line))


class TextStream(ProgressLines):
    """Writes the text of the only branch as it is generated."""

    def __init__(self) -> None:
        super().__init__()
        self._written = ""

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
            if tree.notice is not None:
                write_progress(one_line(tree.notice))
        if not self._written.endswith("\n"):
            print()

    def _write(self, text: str) -> None:
        self._written += text
        print(printable(text), end="", flush=True)


class JsonOutput(ProgressLines):
    """Writes one JSON document when the trees are done."""

    def finish(
        self, trees: Sequence[GenerationTree], settings: Mapping[str, Any]
    ) -> None:
        """Write the settings and the trees; other scripts than Latin as escapes."""
        results = [tree.to_dict() for tree in trees]
        print(json.dumps({**settings, "results": results}, indent=2, allow_nan=False))


def write_progress(message: str) -> None:
    """Write one line about the run to stderr."""
    print(f"deft-jax: {message}", file=sys.stderr, flush=True)
