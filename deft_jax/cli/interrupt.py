"""Ctrl-C as a request to stop, then as an abort."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import NoReturn, Self

INTERRUPTED = 130
"""Exit code of a command ended by SIGINT, as shells have it."""


def _exit_now() -> NoReturn:
    os._exit(INTERRUPTED)


class Interrupt:
    """While entered, the first SIGINT sets a flag and the second aborts.

    A thread watches for the signals: handlers in Python run on the main thread, which
    may be inside a compiler for minutes. Outside the main thread nothing is watched.
    """

    def __init__(
        self,
        on_request: Callable[[], None],
        on_abort: Callable[[], None],
        exit_now: Callable[[], object] = _exit_now,
    ) -> None:
        """Prepare to watch.

        Args:
            on_request: called on the first signal, from another thread.
            on_abort: called on the second, to restore the terminal.
            exit_now: ends the process.
        """
        self._on_request = on_request
        self._on_abort = on_abort
        self._exit_now = exit_now
        self._requested = threading.Event()

    def is_requested(self) -> bool:
        """Return whether the user has asked to stop."""
        return self._requested.is_set()

    def __enter__(self) -> Self:
        self._watching = threading.current_thread() is threading.main_thread()
        if not self._watching:
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._handler = signal.signal(signal.SIGINT, lambda *_: None)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._watching:
            return
        signal.set_wakeup_fd(self._wakeup)
        signal.signal(signal.SIGINT, self._handler or signal.SIG_DFL)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _watch(self) -> None:
        while numbers := self._reader.recv(16):
            for _ in range(numbers.count(signal.SIGINT)):
                self._handle()

    def _handle(self) -> None:
        if self._requested.is_set():
            self._on_abort()
            self._exit_now()
        else:
            self._requested.set()
            self._on_request()
