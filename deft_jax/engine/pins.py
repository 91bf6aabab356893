"""Who keeps whose KV: pins that branches share, and what a branch holds."""

import threading
from collections.abc import Callable
from typing import Self


class SharedPin:
    """Keeps the KV of one finished request for as long as anybody shares it.

    A fork stores nothing of its own yet, so that it shares its parent's pin; the leaves
    of one request share the pin of that request.
    """

    def __init__(self, unpin: Callable[[object], None], pin: object | None):
        """Begin with one share, which is the caller's.

        Args:
            unpin: called with the pin when the last share is released.
            pin: what the engine gave; None where it keeps nothing.
        """
        self._unpin = unpin
        self._pin = pin
        self._shares = 1
        self._lock = threading.Lock()

    def share(self) -> Self:
        """Add a share, and return the pin. There must be a share already."""
        with self._lock:
            assert self._shares > 0, "a pin was shared that nobody holds"
            self._shares += 1
        return self

    def release(self) -> None:
        """Take a share away; the last one lets the engine free the KV."""
        with self._lock:
            self._shares -= 1
            is_last = self._shares == 0
        # Outside the lock: nobody knows what locks an engine takes.
        if is_last and self._pin is not None:
            self._unpin(self._pin)


class Hold:
    """The share of a branch, which moves on from pin to pin.

    It is apart from the branch so that it can be released when the branch is gone.
    """

    def __init__(self, pin: SharedPin):
        """Take a share of a pin."""
        self._pin: SharedPin | None = pin.share()
        self._lock = threading.Lock()

    def share(self) -> SharedPin | None:
        """Return the pin with a share more, which is the caller's; None if released."""
        with self._lock:
            return None if self._pin is None else self._pin.share()

    def move(self, pin: SharedPin) -> None:
        """Take a share of another pin, then release the one so far.

        A hold that was released takes none.
        """
        with self._lock:
            if self._pin is None:
                return
            old, self._pin = self._pin, pin.share()
        old.release()

    def release(self) -> None:
        """Release the share; a second time does nothing."""
        with self._lock:
            old, self._pin = self._pin, None
        if old is not None:
            old.release()
