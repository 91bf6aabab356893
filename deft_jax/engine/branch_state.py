"""What a branch is on the host: its path, its sampling key, and its hold on the KV."""

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from deft_jax.engine.branch_path import BranchPath
from deft_jax.engine.handle import RequestHandle
from deft_jax.engine.pins import SharedPin
from deft_jax.engine.session_state import SessionState
from deft_jax.errors import DeftError
from deft_jax.results.tree_node import FinishReason
from deft_jax.sampling.noise import child_key_on_host

DROPPED_EARLY = "the branch was dropped while it was growing"
"""What waits for a branch is told when somebody drops it."""


class BranchState:
    """A place in a tree that can be read, forked and grown.

    A branch that nobody refers to any more lets go of its KV.

    Attributes:
        session: what it shares with the other branches of its session.
        path: its tokens and its text.
        finish_reason: why the text that was generated last ended; None before that,
            and after something was added.
        notice: one line about what ended it early; None if nothing did.
    """

    def __init__(
        self, session: SessionState, path: BranchPath, key: int, pin: SharedPin
    ):
        """Begin a branch.

        Args:
            session: what it shares with the others.
            path: where it begins.
            key: sampling key, 0 to 2**32 - 1; its forks and all that it generates have
                keys that are made of this one.
            pin: keeps the KV of the path, or of one that begins with it.
        """
        self.session, self.path = session, path
        self.finish_reason: FinishReason | None = None
        self.notice: str | None = None
        self._key, self._children = key, 0
        self._lock = threading.Lock()
        self._is_dropped = False
        self._growing: list[RequestHandle[Any]] | None = None
        self._hold = session.hold(pin)
        # Nobody frees pages of a device that is about to go as well.
        weakref.finalize(self, session.let_go, self._hold).atexit = False

    @property
    def is_dropped(self) -> bool:
        """True once the branch cannot be used any more."""
        return self._is_dropped

    def check_usable(self) -> None:
        """Check that something can be asked of the branch now.

        Raises:
            DeftError: its session is closed, it was dropped, or it is growing.
        """
        self.session.check_open()
        self._check_not_dropped()
        if self._growing is not None:
            raise DeftError(
                "the branch is growing; wait for that, or fork it first and grow the "
                "forks at the same time"
            )

    def next_key(self) -> int:
        """Return the key of the next child, a fork or a request."""
        with self._lock:
            self._children += 1
            return child_key_on_host(self._key, self._children - 1)

    def fork(self) -> "BranchState":
        """Return a child that begins where the branch stands.

        Raises:
            DeftError: the branch cannot be used.
        """
        self.check_usable()
        pin = self._hold.share()
        if pin is None:
            self._check_not_dropped()
            raise DeftError("the session is closed; open another one")
        try:
            return BranchState(self.session, self.path.forked(), self.next_key(), pin)
        finally:
            pin.release()

    def move(
        self,
        path: BranchPath,
        pin: SharedPin,
        finish_reason: FinishReason | None = None,
        notice: str | None = None,
    ) -> None:
        """Stand at the end of another path, whose KV a pin keeps."""
        self._hold.move(pin)
        self.path = path
        self.finish_reason, self.notice = finish_reason, notice

    def drop(self) -> None:
        """Let go of the KV, and cancel what makes the branch grow."""
        with self._lock:
            self._is_dropped = True
            handles = list(self._growing or ())
        for handle in handles:
            handle.cancel()
        self.session.release(self._hold)
        self.session.free_what_was_let_go()

    def begin_growing(self, handles: list[RequestHandle[Any]]) -> None:
        """Refuse everything but `drop` until `end_growing`.

        Args:
            handles: what `drop` cancels.

        Raises:
            DeftError: the branch cannot be used.
        """
        self.check_usable()
        with self._lock:
            if self._growing is None:
                self._growing = handles
                return
        self.check_usable()

    def end_growing(self) -> None:
        """Allow everything again."""
        with self._lock:
            self._growing = None

    def check_still_there(self) -> None:
        """Check that nobody has dropped the branch while it grew.

        Raises:
            DeftError: somebody has.
        """
        if self._is_dropped:
            raise DeftError(DROPPED_EARLY)

    def _check_not_dropped(self) -> None:
        if self._is_dropped:
            raise DeftError("the branch was dropped; fork one that is still there")


@contextlib.contextmanager
def growing(states: Sequence[BranchState]) -> Iterator[list[RequestHandle[Any]]]:
    """Let branches grow in the body, which only they may do then.

    Yields:
        A list for the handles of the requests by which they grow.

    Raises:
        DeftError: a branch cannot be used, is there twice, or was dropped meanwhile.
    """
    handles: list[RequestHandle[Any]] = []
    begun: list[BranchState] = []
    try:
        for state in states:
            state.begin_growing(handles)
            begun.append(state)
        yield handles
    except Exception:
        # A request that was cancelled because of this has an error of its own.
        if any(state.is_dropped for state in begun):
            raise DeftError(DROPPED_EARLY) from None
        raise
    finally:
        for state in begun:
            state.end_growing()
