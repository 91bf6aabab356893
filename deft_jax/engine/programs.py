"""Programs that are compiled ahead of time, several at once and beside other work."""

from collections.abc import Hashable
from concurrent.futures import Future

from jax.stages import Compiled, Lowered

from deft_jax.engine.beside import run_beside


class Programs:
    """Compiled programs by key, each compiled on a thread of its own.

    Lowering needs Python, so the caller does it. XLA compiles, or reads what a cache
    has kept, without Python's lock; a cached program of an unrolled network takes about
    a second to read.
    """

    def __init__(self) -> None:
        self._programs: dict[Hashable, Future[Compiled]] = {}

    def start(self, key: Hashable, lowered: Lowered) -> None:
        """Begin to compile a program.

        Args:
            key: what the program is known by; an older one of this key is forgotten.
            lowered: what is to be compiled.
        """
        self._programs[key] = run_beside(lowered.compile)

    def get(self, key: Hashable) -> Compiled | None:
        """Return a program when it is compiled, None if it was never begun.

        Raises:
            Exception: compiling failed; the program is forgotten.
        """
        future = self._programs.get(key)
        if future is None:
            return None
        try:
            return future.result()
        except Exception:
            del self._programs[key]
            raise
