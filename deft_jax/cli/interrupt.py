"""Signals that end a command: at once, or first as a request to stop."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Self

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
]
"""Ctrl-C, `kill`, and the end of the terminal, which Windows has not."""


def exit_code(number: int) -> int:
    """Return the exit code of a command ended by a signal, as shells have it."""
    return 128 + number


class Interrupt:
    """While entered, a signal restores the terminal and ends the process.

    Within `softly` the first signal only asks to stop, and the second ends the process.

    A thread watches for the signals: handlers in Python run on the main thread, which
    may be inside a compiler for minutes, or inside an import that swallows
    `KeyboardInterrupt`. Signals that the parent process ignores stay ignored, as
    `nohup` wants it. Outside the main thread nothing is watched.

    Attributes:
        on_abort: called before the process ends, to restore the terminal; from another
            thread.
        requested: number of the signal that asked to stop, None without one.
    """

    def __init__(self, exit_now: Callable[[int], object] = os._exit):
        """Prepare to watch.

        Args:
            exit_now: ends the process with an exit code.
        """
        self.on_abort: Callable[[], object] = lambda: None
        self.requested: int | None = None
        self._exit_now = exit_now
        self._on_request: Callable[[int], object] | None = None

    def is_requested(self) -> bool:
        """Return whether a signal has asked to stop."""
        return self.requested is not None

    @contextlib.contextmanager
    def softly(self, on_request: Callable[[int], object]) -> Iterator[None]:
        """Let the first signal ask to stop while the context is entered.

        Args:
            on_request: called with the number of that signal, from another thread.
        """
        self._on_request = on_request
        try:
            yield
        finally:
            self._on_request = None

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._watching = threading.current_thread() is threading.main_thread()
        if not self._watching:
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._handlers = {
            number: signal.signal(number, lambda *_: None)
            for number in SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN
        }
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back to the handlers that had them."""
        if not self._watching:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _watch(self) -> None:
        while numbers := self._reader.recv(16):
            for number in numbers:
                if number in self._handlers:
                    self._handle(number)

    def _handle(self, number: int) -> None:
        if self._on_request is not None and self.requested is None:
            self.requested = number
            self._on_request(number)
            return
        # A terminal that is gone cannot be restored.
        with contextlib.suppress(OSError):
            self.on_abort()
        self._exit_now(exit_code(number))
