r"""What the user enters in a chat: lines, or several of them as one message.

A line that ends with a backslash goes on in the next one. All lines between two lines
of three quotation marks are one message, whatever they hold.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deft_jax.errors import DeftError

ReadLine = Callable[[str], str]
"""Returns a line without its end, given what to show before it.

Raises:
    EOFError: there is no more.
"""

FIRST, MORE = "> ", ". "
"""What stands before the first line of a message, and before the others."""

BLOCK = '"""'

_HISTORY_LINES = 1000


@dataclass(frozen=True)
class Entry:
    """What was entered.

    Attributes:
        text: its lines, joined.
        is_block: true if it stood between quotation marks, and so is no command.
    """

    text: str
    is_block: bool = False


def read_entry(read_line: ReadLine) -> Entry | None:
    """Return what is entered next, None at the end of the input."""
    try:
        line = read_line(FIRST)
    except EOFError:
        return None
    if line.strip() == BLOCK:
        return Entry(_read_block(read_line), is_block=True)
    lines = [line]
    with contextlib.suppress(EOFError):
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(read_line(MORE))
    return Entry("\n".join(lines))


def _read_block(read_line: ReadLine) -> str:
    """Return the lines before the next one of quotation marks, or all there are."""
    lines: list[str] = []
    with contextlib.suppress(EOFError):
        while (line := read_line(MORE)).strip() != BLOCK:
            lines.append(line)
    return "\n".join(lines)


def is_terminal() -> bool:
    """Say whether a person is at both ends.

    Raises:
        DeftError: standard input is closed.
    """
    if sys.stdin is None:
        raise DeftError("standard input is closed; redirect it from a file or a pipe")
    return sys.stdin.isatty() and sys.stdout.isatty()


def read_piped_line(_: str) -> str:
    """Read a line of standard input that is no terminal; a `ReadLine`."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


class TerminalLines:
    """Reads lines from a terminal, with editing and history where Python has them.

    History is kept in a file of the user's cache folder. Nothing of it ever fails: what
    cannot be read or written is not kept.
    """

    def __init__(self, path: Path | None):
        """Read the history.

        Args:
            path: file of the history, None to keep none.
        """
        self._path, self._readline = path, _import_readline()
        if self._readline is None or path is None:
            return
        with contextlib.suppress(OSError):
            self._readline.set_history_length(_HISTORY_LINES)
            self._readline.read_history_file(path)

    def __call__(self, prompt: str) -> str:
        """Read a line; a `ReadLine`."""
        line = input(prompt)
        if line.strip():
            self._keep()
        return line

    def _keep(self) -> None:
        """Write the history; what people write to a model is theirs alone."""
        if self._readline is None or self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            self._readline.write_history_file(self._path)


def history_path() -> Path | None:
    """Return the file of the history, None where the user has no cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return None if base.startswith("~") else Path(base) / "deft-jax" / "chat_history"


def _import_readline() -> Any:
    """Return the module that gives `input` editing, None where there is none."""
    try:
        import readline
    except ImportError:
        return None
    return readline
