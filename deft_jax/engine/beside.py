"""Work on a thread beside the main one."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


def run_beside[T](call: Callable[[], T]) -> Future[T]:
    """Begin a call on a thread of its own; its result or exception is in the future.

    At its end the process waits for the thread: one that is inside XLA then would crash
    it. A command that does not want to wait ends with `os._exit`.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run).start()
    return future
