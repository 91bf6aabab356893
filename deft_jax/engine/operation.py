"""Operations written once, that threads wait for and coroutines await.

An operation is a generator: it begins requests, yields their handles, is given their
results, and returns what came of it. If waiting fails, because a request did, the
thread was interrupted or the coroutine's task was cancelled, the error is raised in the
generator, which cancels what still runs.
"""

from collections.abc import Generator
from typing import Any

from deft_jax.engine.handle import RequestHandle

type Operation[T] = Generator[list[RequestHandle[Any]], list[Any], T]


def run[T](operation: Operation[T]) -> T:
    """Run an operation to its end; the calling thread waits for its requests."""
    try:
        handles = next(operation)
        while True:
            try:
                results = [handle.result() for handle in handles]
            except BaseException as error:
                handles = operation.throw(error)
            else:
                handles = operation.send(results)
    except StopIteration as end:
        return end.value


async def run_async[T](operation: Operation[T]) -> T:
    """Run an operation to its end; the event loop goes on meanwhile."""
    try:
        handles = next(operation)
        while True:
            try:
                results = [await handle for handle in handles]
            except BaseException as error:
                handles = operation.throw(error)
            else:
                handles = operation.send(results)
    except StopIteration as end:
        return end.value
