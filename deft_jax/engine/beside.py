"""Work on a thread beside the main one."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def run_beside[T](call: Callable[[], T]) -> Future[T]:
    """Begin a call on a thread of its own; its result or exception is in the future.

    The process does not wait for it to end.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
