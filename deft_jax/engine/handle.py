"""What a caller holds of a request: its result to come, and its tokens as they come."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Any, Protocol

from deft_jax.results.tree_node import TokenEvent


class Canceller(Protocol):
    """What a handle tells that its request is not wanted any more."""

    def cancel(self, index: int) -> None:
        """Note that a request is not wanted any more."""
        ...

    def check_not_inside(self) -> None:
        """Refuse to wait on the thread that would have to run the request.

        Raises:
            DeftError: that is the thread.
        """
        ...


class RequestHandle[T]:
    """A request that was submitted; its result is waited for, awaited or iterated.

    Iteration, `for event in handle` or `async for`, gives the tokens that come from
    then on, each as a `deft_jax.TokenEvent`, until the request ends; it raises what
    ended the request if that was an error. Each iteration hears every token once.

    Attributes:
        pin: keeps the KV of the request's paths, if the request asked for that and has
            ended; to be given back to `Engine.unpin`. None before.
    """

    def __init__(self, canceller: Canceller, index: int = 0):
        """Set a handle up; the engine does so.

        Args:
            canceller: told that the request is not wanted.
            index: number of the request in its call.
        """
        self.pin: Any = None
        self._canceller, self._index = canceller, index
        self._future: Future[T] = Future()
        self._listeners: list[Callable[[TokenEvent | None], None]] = []

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            TimeoutError: it is not there in time; the request goes on.
            DeftError: a callback of the engine waits, which would be for ever.
            Exception: what ended the request, if that was an error.
        """
        if not self._future.done():
            self._canceller.check_not_inside()
        return self._future.result(timeout)

    def done(self) -> bool:
        """Say whether the request has ended."""
        return self._future.done()

    def cancel(self) -> None:
        """End the request where it stands; its result has what there is.

        Its open branches end as "interrupted". A request that has ended stays as it is.
        """
        self._canceller.cancel(self._index)

    def add_done_callback(self, call: Callable[["RequestHandle[T]"], None]) -> None:
        """Call a function with the handle once the request has ended.

        It is called on the engine's thread, or at once if the request has ended; it
        must not wait for other requests.
        """
        self._future.add_done_callback(lambda _: call(self))

    @property
    def is_watched(self) -> bool:
        """True if somebody iterates over its tokens."""
        return bool(self._listeners)

    def __iter__(self) -> Iterator[TokenEvent]:
        """Yield the tokens as they come, until the request ends."""
        if not self._future.done():
            self._canceller.check_not_inside()
        events: queue.SimpleQueue[TokenEvent | None] = queue.SimpleQueue()
        self._listen(events.put)
        while (event := events.get()) is not None:
            yield event
        self._raise()

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Yield the tokens as they come, until the request ends."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[TokenEvent | None] = asyncio.Queue()

        def put(event: TokenEvent | None) -> None:
            with suppress(RuntimeError):  # The loop was closed meanwhile.
                loop.call_soon_threadsafe(events.put_nowait, event)

        self._listen(put)
        while (event := await events.get()) is not None:
            yield event
        self._raise()

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the result in a coroutine; cancelling it cancels the request."""
        return self._wait().__await__()

    async def _wait(self) -> T:
        future = asyncio.wrap_future(self._future)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not self._future.done():
                self.cancel()
            raise

    def _listen(self, put: Callable[[TokenEvent | None], None]) -> None:
        self._listeners.append(put)
        self._future.add_done_callback(lambda _: put(None))

    def _raise(self) -> None:
        with suppress(CancelledError):
            if (error := self._future.exception()) is not None:
                raise error

    def tell(self, event: TokenEvent) -> None:
        """Give a token to whoever iterates; the engine does so."""
        for put in self._listeners:
            put(event)

    def set_result(self, result: T) -> None:
        """End the request with its result; the engine does so."""
        self._check()
        self._future.set_result(result)

    def set_exception(self, error: BaseException) -> None:
        """End the request with an error; the engine does so."""
        self._check()
        self._future.set_exception(error)

    def _check(self) -> None:
        if self._future.done():
            raise InvalidStateError("the request has ended already")
