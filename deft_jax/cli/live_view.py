"""The growing trees on a terminal, redrawn in place."""

import contextlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.text import Text

from deft_jax.cli.growing_tree import GrowingTree
from deft_jax.cli.live_layout import Activity, screen_lines
from deft_jax.cli.view import EXCERPT_CELLS, View, counters, outcome_lines, stopping
from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.render import Line, Role
from deft_jax.results.tree_node import TokenEvent

_REFRESHES_PER_SECOND = 10

_STYLES: dict[Role, str] = {
    "guide": "dim",
    "prompt": "bold",
    "label": "cyan",
    "text": "",
    "good": "green",
    "short": "yellow",
    "answer": "bold green",
    "notice": "yellow",
}


class LiveView(View):
    """Redraws the screen from a thread, so that it moves while XLA compiles."""

    def __init__(
        self,
        title: str,
        prompts: Sequence[str],
        console: Console,
        full: bool = False,
    ):
        """Prepare to draw.

        Args:
            title: model and strategy.
            prompts: what the user asked, without a chat template.
            console: where to draw.
            full: leave the whole text of every branch on the screen.
        """
        now = time.monotonic()
        self._activity = Activity(title, started_at=now, since=now)
        self._prompts = prompts
        self._trees = [GrowingTree() for _ in prompts]
        self._console = console
        self._max_text = None if full else EXCERPT_CELLS
        self._lock = threading.Lock()
        self._live = Live(
            self,
            console=console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        """Draw the first picture and hide the cursor."""
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the picture and show the cursor, unless the terminal is gone."""
        with contextlib.suppress(OSError):
            self._live.stop()

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        """Yield the picture of this moment."""
        # One line less than the screen has: the cursor stands below the last one.
        size = options.max_width, max(console.height - 1, 1)
        with self._lock:
            lines = screen_lines(
                self._activity, self._prompts, self._trees, size, time.monotonic()
            )
        yield Group(*map(styled, lines))

    def on_load(self, done: int, total: int) -> None:
        """Show the bar of the tensors."""
        with self._lock:
            self._activity.tensors = done, total

    def on_status(self, status: Status) -> None:
        """Show the counters in the header."""
        with self._lock:
            self._activity.update(status, time.monotonic())

    def on_token(self, event: TokenEvent) -> None:
        """Grow a branch."""
        with self._lock:
            self._trees[event.request].add(event)

    def on_interrupt(self, number: int) -> None:
        """Say in the header that the end is near."""
        with self._lock:
            self._activity.stopping = stopping(number)

    def restore_terminal(self) -> None:
        """Remove the picture and show the cursor again."""
        self._live.stop()

    def finish(
        self, trees: Sequence[GenerationTree], settings: Mapping[str, Any]
    ) -> None:
        """Leave the outcome on the screen, and the counters on its last line."""
        width = self._console.width
        for line in outcome_lines(trees, self._prompts, width, self._max_text):
            self._console.print(styled(line), soft_wrap=True)
        if trees:
            self._console.print(Text(counters(trees[0].stats), "dim"))


def styled(line: Line) -> Text:
    """Return a line as rich text; nothing in it is taken as markup."""
    return Text.assemble(*((span.text, _STYLES[span.role]) for span in line))
