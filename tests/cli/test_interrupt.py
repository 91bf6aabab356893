import os
import signal
import threading
import time

import pytest

from deft_jax.cli.interrupt import SIGNALS, Interrupt

DEADLINE_S = 5


def wait_for(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.fixture
def calls():
    return []


@pytest.fixture
def interrupt(calls):
    interrupt = Interrupt(exit_now=lambda code: calls.append(code))
    interrupt.on_abort = lambda: calls.append("restore")
    return interrupt


def test_first_signal_asks_and_second_aborts(interrupt, calls):
    with interrupt, interrupt.softly(lambda number: calls.append("request")):
        assert not interrupt.is_requested()
        send()
        wait_for(interrupt.is_requested)
        wait_for(lambda: calls == ["request"])
        send()
        wait_for(lambda: calls == ["request", "restore", 130])
    assert interrupt.is_requested()


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_ends_the_command_with_its_own_code(interrupt, calls, number):
    with interrupt:
        send(number)
        wait_for(lambda: calls == ["restore", 128 + number])
    assert not interrupt.is_requested()


def test_second_signal_need_not_be_that_of_the_first(interrupt, calls):
    with interrupt, interrupt.softly(lambda number: calls.append("request")):
        send(signal.SIGHUP)
        wait_for(lambda: calls == ["request"])
        send(signal.SIGTERM)
        wait_for(lambda: calls == ["request", "restore", 143])
    assert interrupt.requested == signal.SIGHUP


def test_signal_behind_the_soft_part_aborts(interrupt, calls):
    with interrupt:
        with interrupt.softly(lambda number: calls.append("request")):
            pass
        send()
        wait_for(lambda: calls == ["restore", 130])


def test_terminal_that_is_gone_does_not_keep_the_process(interrupt, calls):
    def fail():
        raise OSError("no terminal")

    interrupt.on_abort = fail
    with interrupt:
        send(signal.SIGHUP)
        wait_for(lambda: calls == [129])


def test_ignored_signals_stay_ignored(interrupt, calls):
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            send(signal.SIGHUP)
            send(signal.SIGTERM)
            wait_for(lambda: calls == ["restore", 143])
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_handlers_are_restored(interrupt):
    handlers = list(map(signal.getsignal, SIGNALS))
    with interrupt:
        for number, handler in zip(SIGNALS, handlers, strict=True):
            assert signal.getsignal(number) != handler
    assert list(map(signal.getsignal, SIGNALS)) == handlers
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(KeyboardInterrupt):
        send()
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
