"""What all branches of a session share: its engine, what runs, and what is held."""

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from deft_jax.engine.branch_engine import BranchEngine
from deft_jax.engine.handle import RequestHandle
from deft_jax.engine.operation import Operation
from deft_jax.engine.pins import Hold, SharedPin
from deft_jax.errors import DeftError
from deft_jax.sampling.params import Sampling

CLOSED_EARLY = "the session was closed before its request was done"
"""What waits is told when the session ends."""


class Answer(NamedTuple):
    """What came of one request.

    Attributes:
        value: its result.
        pin: keeps the KV of its path; the receiver has a share to release.
    """

    value: Any
    pin: SharedPin


class SessionState:
    """Knows the requests that run and the pins that are held, so as to end them.

    Attributes:
        engine: runs the requests.
        sampling: how tokens are chosen where an operation does not say.
        priority: priority of all requests.
    """

    def __init__(self, engine: BranchEngine, sampling: Sampling, priority: int):
        """Begin with nothing that runs or is held."""
        self.engine, self.sampling, self.priority = engine, sampling, priority
        self._lock = threading.Lock()
        self._running: dict[int, RequestHandle[Any]] = {}
        self._holds: set[Hold] = set()
        self._let_go: collections.deque[Hold] = collections.deque()
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """True once nothing can be asked any more."""
        return self._is_closed

    def check_open(self) -> None:
        """Check that the session is open, and free what was let go meanwhile.

        Raises:
            DeftError: it is closed.
        """
        if self._is_closed:
            raise DeftError("the session is closed; open another one")
        self.free_what_was_let_go()

    def hold(self, pin: SharedPin) -> Hold:
        """Return a hold of a pin, which the end of the session releases."""
        hold = Hold(pin)
        with self._lock:
            is_closed = self._is_closed
            self._holds.add(hold)
        if is_closed:
            self.release(hold)
        return hold

    def release(self, hold: Hold) -> None:
        """Release a hold; a second time does nothing."""
        with self._lock:
            self._holds.discard(hold)
        hold.release()

    def let_go(self, hold: Hold) -> None:
        """Note that the branch of a hold is gone; the next operation releases it.

        The garbage collector may call this in any thread at any moment, while a lock
        of the engine is taken too, so that nothing more is done here.
        """
        self._let_go.append(hold)

    def free_what_was_let_go(self) -> None:
        """Release the holds of branches that are gone."""
        while True:
            try:
                hold = self._let_go.popleft()
            except IndexError:
                return
            self.release(hold)

    def begin[T](self, request: Callable[[], RequestHandle[T]]) -> RequestHandle[T]:
        """Begin a request that ends with the session; return its handle.

        Raises:
            DeftError: the session is closed, or the engine refuses the request.
        """
        self.check_open()
        handle = request()
        with self._lock:
            is_closed = self._is_closed
            self._running[id(handle)] = handle
        handle.add_done_callback(self._forget)
        if is_closed:
            handle.cancel()
        return handle

    def ask(
        self,
        requests: Sequence[Callable[[], RequestHandle[Any]]],
        handles: list[RequestHandle[Any]],
    ) -> Operation[list[Answer]]:
        """Begin requests together, wait for all, and return what came of each.

        If one fails, the others are cancelled and nothing stays pinned.

        Args:
            requests: functions that begin one each.
            handles: list to which the handles are added as the requests begin, for
                whoever wants to cancel them.

        Raises:
            DeftError: a request was refused or failed, or the session was closed.
        """
        own: list[RequestHandle[Any]] = []
        try:
            for request in requests:
                own.append(self.begin(request))
                handles.append(own[-1])
            values = yield own
            if self._is_closed:
                raise DeftError(CLOSED_EARLY)
        except BaseException as error:
            for handle in own:
                handle.cancel()
                handle.add_done_callback(self._unpin_result)
            begun = len(own) == len(requests)
            if self._is_closed and begun and isinstance(error, Exception):
                # A request that was cancelled because of this has its own error.
                raise DeftError(CLOSED_EARLY) from None
            raise
        unpin = self.engine.unpin
        return [
            Answer(value, SharedPin(unpin, handle.pin))
            for value, handle in zip(values, own, strict=True)
        ]

    def close(self) -> None:
        """Cancel what runs and release what is held; a second time does nothing."""
        with self._lock:
            self._is_closed = True
            running, self._running = list(self._running.values()), {}
            holds, self._holds = self._holds, set()
        for handle in running:
            handle.cancel()
        for hold in holds:
            hold.release()

    def _forget(self, handle: RequestHandle[Any]) -> None:
        with self._lock:
            self._running.pop(id(handle), None)

    def _unpin_result(self, handle: RequestHandle[Any]) -> None:
        """Let go of what a request has pinned that nobody waits for any more."""
        if handle.pin is not None:
            self.engine.unpin(handle.pin)
