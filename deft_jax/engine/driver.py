"""The thread that runs an engine's loop while there is something to do."""

import threading
from collections import deque
from collections.abc import Callable

from deft_jax.engine.call import Call
from deft_jax.engine.decode_loop import DecodeLoop
from deft_jax.engine.device_memory import is_out_of_memory
from deft_jax.errors import CapacityError

_SECONDS_BETWEEN_LOOKS = 0.02
"""How often callers are heeded while every request waits for its strategy."""


class Driver:
    """Takes orders from any thread and carries them out on one, between turns.

    The thread lives while there is something to do. What it raises goes to the calls
    that wait; the next order finds an empty engine.
    """

    def __init__(self, loop: DecodeLoop):
        self._loop = loop
        loop.work.order = self.order
        self._comes = threading.Event()
        self._lock = threading.Lock()
        self._orders: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None

    def submit(self, call: Call) -> None:
        """Let the requests of a call run; safe from any thread."""
        call.is_inside = self._is_inside

        def submit() -> None:
            try:
                self._loop.work.submit(call)
            except Exception as error:
                self._loop.work.fail_call(call, error)

        self.order(submit)

    def _is_inside(self) -> bool:
        return threading.current_thread() is self._thread

    def order(self, do: Callable[[], None]) -> None:
        """Let something be done between two turns; safe from any thread."""
        with self._lock:
            self._orders.append(do)
            self._comes.set()
            if self._thread is None:
                # At its end the process waits for it: a thread that is inside XLA then
                # would crash it.
                thread = threading.Thread(target=self._run, name="deft-jax")
                self._thread = thread
                try:
                    thread.start()
                except BaseException:
                    self._thread = None
                    self._orders.clear()
                    raise

    def run_between_turns[T](self, do: Callable[[], T]) -> T:
        """Wait until something was done between two turns; return what it gave."""
        done, results = threading.Event(), []

        def act() -> None:
            try:
                results.append((do(), None))
            except BaseException as error:
                results.append((None, error))
            done.set()

        if self._is_inside():
            act()
        else:
            self.order(act)
            done.wait()
        value, error = results[0]
        if error is not None:
            raise error
        return value

    def _run(self) -> None:
        try:
            while self._goes_on():
                try:
                    self._comes.clear()
                    while self._orders:
                        self._orders.popleft()()
                    self._loop.turn()
                    if self._loop.only_waits:
                        self._comes.wait(_SECONDS_BETWEEN_LOOKS)
                except BaseException as error:
                    self._loop.fail(_as_told(error))
        finally:
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _goes_on(self) -> bool:
        """Say whether there is something to do; if not, the next order starts anew."""
        with self._lock:
            if self._orders or not self._loop.is_idle:
                return True
            self._thread = None
            return False


def _as_told(error: BaseException) -> BaseException:
    """Return the error that callers get: the lack of memory has one of its own."""
    if not is_out_of_memory(error):
        return error
    text = " ".join(str(error).split()) or type(error).__name__
    told = CapacityError(
        "the device ran out of memory; lower n, max_new_tokens or the context: "
        f"{text:.200}"
    )
    told.__suppress_context__ = True
    return told
