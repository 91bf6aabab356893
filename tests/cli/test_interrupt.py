import os
import signal
import threading
import time

import pytest

from deft_jax.cli.interrupt import Interrupt

DEADLINE_S = 5


def wait_for(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def calls():
    return []


@pytest.fixture
def interrupt(calls):
    return Interrupt(
        on_request=lambda: calls.append("request"),
        on_abort=lambda: calls.append("restore"),
        exit_now=lambda: calls.append("exit"),
    )


def test_first_signal_asks_and_second_aborts(interrupt, calls):
    with interrupt:
        assert not interrupt.is_requested()
        press_ctrl_c()
        wait_for(interrupt.is_requested)
        wait_for(lambda: calls == ["request"])
        press_ctrl_c()
        wait_for(lambda: calls == ["request", "restore", "exit"])
    assert interrupt.is_requested()


def test_handlers_are_restored(interrupt):
    handler = signal.getsignal(signal.SIGINT)
    with interrupt:
        assert signal.getsignal(signal.SIGINT) != handler
    assert signal.getsignal(signal.SIGINT) == handler
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
        time.sleep(DEADLINE_S)


def test_other_threads_watch_nothing(interrupt):
    handler = signal.getsignal(signal.SIGINT)
    seen = []

    def run():
        with interrupt:
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [handler]
