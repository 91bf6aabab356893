"""Programs that are made ahead of time, several at once and beside other work."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future

from jax.stages import Compiled

from deft_jax.engine.beside import run_beside


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

    def get(self, key: Hashable) -> Compiled | None:
        """Return a program when it is made, None if it was never begun.

        Raises:
            Exception: it could not be made, and is forgotten.
        """
        future = self._programs.get(key)
        if future is None:
            return None
        try:
            return future.result()
        except Exception:
            del self._programs[key]
            raise
