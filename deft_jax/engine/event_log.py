"""What an engine did, as JSON lines: for whoever looks for what went wrong."""

import collections
import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

COUNTED = ("tokens", "cached", "nodes", "steps")
"""Numbers of events that are summed up."""


class EventLog:
    """Counts events, and writes them, one JSON object per line, if there is a file.

    Each line has the seconds since the start and the kind of the event.

    Kinds of events: "submit", "start", "look up", "feed", "burst", "finish",
    "evict", "preempt" and "resume".

    Attributes:
        counts: events by kind, and sums of their numbers by kind and name.
    """

    def __init__(self, path: str | Path | None):
        """Open the log.

        Args:
            path: file that lines are added to; None writes nothing.
        """
        self._write: Callable[[str], Any] | None = None
        self._begin = time.perf_counter()
        self.counts: collections.Counter[str] = collections.Counter()
        if path is not None:
            file = Path(path).open("a", buffering=1, encoding="utf-8")
            self._write = file.write
            weakref.finalize(self, file.close)

    def add(self, kind: str, **fields: Any) -> None:
        """Write an event.

        Args:
            kind: what happened.
            fields: what there is to say of it, ready for JSON.
        """
        self.counts[kind] += 1
        for name, value in fields.items():
            if name in COUNTED:
                self.counts[f"{kind} {name}"] += value
        if self._write is not None:
            seconds = round(time.perf_counter() - self._begin, 6)
            line = json.dumps({"s": seconds, "kind": kind, **fields})
            self._write(line + "\n")
