"""What belongs to one call: its requests, who listens to it, and its results."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

from deft_jax.engine.handle import RequestHandle
from deft_jax.engine.host_tree import HostTree
from deft_jax.engine.pin import Pin
from deft_jax.engine.progress import Progress
from deft_jax.engine.reading import Reading
from deft_jax.engine.request import Request
from deft_jax.errors import DeftError
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import FinishReason, TokenEvent


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a request has left.

    Attributes:
        index: number of the request in its call.
        tree: its tree.
        notice: one line about what ended it early, if something did.
        ends_as: why the host ended it; None if it ran to its end.
        pin: keeps its paths, if that was asked for.
        reading: what was asked about its prompt.
    """

    index: int
    tree: HostTree
    notice: str | None = None
    ends_as: FinishReason | None = None
    pin: Pin | None = None
    reading: Reading = Reading()


class Call:
    """Requests that were submitted together.

    Attributes:
        requests: what was asked for, in order.
        handles: the results to come, one per request.
        progress: the counters.
        should_stop: asked between bursts; true ends the call with what there is.
        is_open: true if other calls may follow while it runs, so that bursts are short.
        error: what ended the call, if a listener or the device raised.
        is_inside: says whether the caller is on the thread that runs it.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        progress: Progress,
        on_token: Callable[[TokenEvent], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        *,
        is_open: bool = False,
    ):
        """Set a call up; the driver takes it from here.

        Args:
            requests: what is asked for.
            progress: the counters, with the listener to them.
            on_token: called for every token, on the driver's thread.
            should_stop: asked there between bursts.
            is_open: true if others may follow while it runs.
        """
        self.requests = list(requests)
        self.handles: list[RequestHandle[Any]] = [
            RequestHandle(self, index) for index in range(len(requests))
        ]
        self.progress = progress
        self.should_stop, self.is_open = should_stop, is_open
        self._on_token = on_token
        self._ended: dict[int, Ended] = {}
        self._cancelled: set[int] = set()
        self._done = threading.Event()
        self.error: BaseException | None = None
        self.is_inside: Callable[[], bool] = lambda: False

    @property
    def is_watched(self) -> bool:
        """True if somebody looks at tokens as they come, or may stop the call."""
        return (
            self._on_token is not None
            or self.should_stop is not None
            or any(handle.is_watched for handle in self.handles)
        )

    @property
    def is_done(self) -> bool:
        """True if the results are there, or an error in their place."""
        return self._done.is_set()

    def tell(self, events: Sequence[TokenEvent]) -> None:
        """Give the tokens of a burst to whoever listens."""
        for event in events:
            if self._on_token is not None:
                self._on_token(event)
            self.handles[event.request].tell(event)

    def cancel(self, index: int) -> None:
        """Note that a request is not wanted any more; safe from any thread."""
        self._cancelled.add(index)

    def cancel_all(self) -> None:
        """Note that no request of the call is wanted any more."""
        self._cancelled.update(range(len(self.requests)))

    def is_cancelled(self, index: int) -> bool:
        """Say whether a request is not wanted any more."""
        return index in self._cancelled

    @property
    def is_cancelled_whole(self) -> bool:
        """True if none of its requests is wanted any more."""
        return len(self._cancelled) == len(self.requests)

    def end(self, ended: Ended) -> None:
        """Note that a request has ended; the last one makes the results."""
        self._ended[ended.index] = ended
        if len(self._ended) < len(self.requests) or self.is_done:
            return
        self.progress.conclude()
        for request in self.requests:
            ended = self._ended[request.index]
            handle = self.handles[request.index]
            handle.pin = ended.pin
            if request.strategy is None:
                _finish_reading(handle, ended)
            else:
                handle.set_result(self._conclude(request, ended))
        self._done.set()

    def _conclude(self, request: Request, ended: Ended) -> GenerationTree:
        """Return the result of a request with what its strategy adds."""
        assert request.strategy is not None
        tree = self.tree_of(request, ended.tree, ended.notice)
        return request.strategy.conclude(tree)

    def tree_of(
        self, request: Request, tree: HostTree, notice: str | None = None
    ) -> GenerationTree:
        """Return the tree of a request as far as it has grown."""
        return GenerationTree(
            request=request.index,
            prompt=request.text,
            nodes=tree.nodes(),
            stats=self.progress.status,
            prefill_s=self.progress.prefill_s,
            decode_s=self.progress.decode_s,
            notice=notice,
        )

    def fail(self, error: BaseException) -> None:
        """Give an exception to every request that has no result yet."""
        if not self.is_done:
            self.error = error
            for handle in self.handles:
                if not handle.done():
                    handle.set_exception(error)
            self._done.set()

    def check_not_inside(self) -> None:
        """Refuse to wait on the thread that would have to run the call.

        Raises:
            DeftError: that is the thread.
        """
        if self.is_inside():
            raise DeftError(
                "a callback of the engine waits for a request of the same engine, "
                "which would be for ever; submit it and use add_done_callback"
            )

    def wait(self) -> None:
        """Wait until every request has ended.

        Raises:
            BaseException: what a listener or the device raised.
        """
        self.check_not_inside()
        self._done.wait()
        if self.error is not None:
            raise self.error


def _finish_reading(handle: RequestHandle[Any], ended: Ended) -> None:
    """Give a reading to its handle, or what kept it from being whole."""
    if ended.ends_as == "interrupted":
        handle.set_exception(CancelledError())
    elif ended.ends_as is not None:
        handle.set_exception(DeftError(str(ended.notice)))
    else:
        handle.set_result(ended.reading)
