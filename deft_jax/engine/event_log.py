"""What an engine did, as JSON lines: for whoever looks for what went wrong."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class EventLog:
    """Writes events, one JSON object per line, with the seconds since the start.

    Kinds of events: "submit", "start", "feed", "burst", "token", "prune", "finish",
    "evict", "preempt", "resume" and "split".
    """

    def __init__(self, path: str | Path | None):
        """Open the log.

        Args:
            path: file that lines are added to; None writes nothing.
        """
        self._write: Callable[[str], Any] | None = None
        self._begin = time.perf_counter()
        if path is not None:
            file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
            self._write = file.write

    @property
    def is_open(self) -> bool:
        """True if events are written."""
        return self._write is not None

    def add(self, kind: str, **fields: Any) -> None:
        """Write an event.

        Args:
            kind: what happened.
            fields: what there is to say of it, ready for JSON.
        """
        if self._write is not None:
            seconds = round(time.perf_counter() - self._begin, 6)
            line = json.dumps({"s": seconds, "kind": kind, **fields})
            self._write(line + "\n")
