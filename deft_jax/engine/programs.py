"""Programs that are made ahead of time, several at once and beside other work."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait

from jax.stages import Compiled

from deft_jax.engine.beside import run_beside

LOOK_S = 0.1
"""Seconds between two questions whether to stop, while a program is being made."""


class StopRequested(Exception):
    """The caller asked to stop while a program was being made."""


def never_stop() -> bool:
    """Return false: nothing asks to stop."""
    return False


class Programs:
    """Compiled programs by key, each made on a thread of its own.

    XLA compiles, or reads what a file has kept, without Python's lock; a kept program
    of an unrolled network takes about a second to read.
    """

    def __init__(self) -> None:
        self._programs: dict[Hashable, Future[Compiled]] = {}

    def start(self, key: Hashable, make: Callable[[], Compiled]) -> None:
        """Begin to make a program.

        Args:
            key: what the program is known by; an older one of this key is forgotten.
            make: reads or compiles the program.
        """
        self._programs[key] = run_beside(make)

    def is_begun(self, key: Hashable) -> bool:
        """Say whether a program was begun."""
        return key in self._programs

    def has(self, key: Hashable) -> bool:
        """Say whether a program is made."""
        future = self._programs.get(key)
        return future is not None and future.done() and future.exception() is None

    def wait(self) -> None:
        """Wait until all that was begun is made, or has failed."""
        wait(list(self._programs.values()))

    def get(
        self, key: Hashable, should_stop: Callable[[], bool] = never_stop
    ) -> Compiled | None:
        """Return a program when it is made, None if it was never begun.

        Args:
            key: what the program is known by.
            should_stop: asked while the program is being made; true gives up waiting.
                The program is made all the same, for a later call.

        Raises:
            StopRequested: `should_stop` said so.
            Exception: the program could not be made, and is forgotten.
        """
        future = self._programs.get(key)
        if future is None:
            return None
        while not (future.done() or wait([future], LOOK_S).done):
            if should_stop():
                raise StopRequested
        try:
            return future.result()
        except Exception:
            del self._programs[key]
            raise
