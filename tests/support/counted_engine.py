"""An engine that counts what sessions begin and what they keep."""

import threading
from typing import Any, Self

from deft_jax.engine.engine import Engine
from deft_jax.engine.session import Session


class CountedEngine:
    """Hands everything on to an engine, and knows what is pinned.

    Attributes:
        handles: all requests that were begun.
        log: what happened in order: "submit", "read", "wait".
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.model, self.tokenizer = engine.model, engine.tokenizer
        self.handles: list[Any] = []
        self.log: list[str] = []
        self._unpinned: list[Any] = []

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        return self._noted("submit", self.engine.submit(*args, **kwargs))

    def read(self, *args: Any, **kwargs: Any) -> Any:
        return self._noted("read", self.engine.read(*args, **kwargs))

    def unpin(self, pin: Any) -> None:
        assert all(pin is not other for other in self._unpinned), "unpinned twice"
        self._unpinned.append(pin)
        self.engine.unpin(pin)

    @property
    def num_pinned(self) -> int:
        """Pins that were given and not taken back."""
        given = [handle.pin for handle in self.handles if handle.done()]
        return sum(pin is not None for pin in given) - len(self._unpinned)

    def _noted(self, what: str, handle: Any) -> Any:
        self.log.append(what)
        self.handles.append(handle)
        return _Noted(self, handle)


class _Noted:
    """A handle that says when somebody waits for it."""

    def __init__(self, counted: CountedEngine, handle: Any):
        self._counted, self._handle = counted, handle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def result(self, timeout: float | None = None) -> Any:
        self._counted.log.append("wait")
        return self._handle.result(timeout)

    def __await__(self) -> Any:
        self._counted.log.append("wait")
        return self._handle.__await__()


class StoppedEngine:
    """A request of a session keeps the engine's thread until it may go on."""

    def __init__(self, session: Session):
        self._is_stopped, self._may_go_on = threading.Event(), threading.Event()
        self._handle = session.submit("x", on_token=self._stop)
        assert self._is_stopped.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.go_on()
        self._handle.result(300)

    def go_on(self) -> None:
        self._may_go_on.set()

    def _stop(self, event: Any) -> None:
        self._is_stopped.set()
        assert self._may_go_on.wait(60)
