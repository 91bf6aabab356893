"""Requests of a chat that are stopped, given up or silent, without a model."""

import os
import signal
import threading

import pytest

from deft_jax.cli import chat_request
from deft_jax.cli.chat_request import ChatRequest
from deft_jax.results.counters import Status
from tests.support.tiny_model import Sampling

DEADLINE_S = 30


class Event:
    """A token, of which a chat wants the text alone."""

    def __init__(self, text):
        self.text = text


class Tree:
    """A tree of one branch."""

    def __init__(self, text):
        self._text = text

    def best(self):
        return None

    def path_text(self, leaf):
        return self._text


class StubbornEngine:
    """Says a word, sends this process a signal, and ends or does not."""

    def __init__(self, number=None, obeys=False, status=None):
        self.number, self.obeys, self.status = number, obeys, status
        self.may_end, self.has_ended = threading.Event(), threading.Event()

    def generate(self, prompts, strategy, sampling, *, on_token, on_status, **options):
        should_stop = options["should_stop"]
        if self.status is None:
            on_token(Event("word"))
        else:
            on_status(self.status)
        if self.number is not None:
            os.kill(os.getpid(), self.number)
        while not (self.may_end.wait(0.01) or (self.obeys and should_stop())):
            pass
        on_token(Event(" more"))
        self.has_ended.set()
        return [Tree("word more and the rest")]


def run(engine, notes=None):
    """Run a request; return it with its tree and what was written."""
    written = []
    request = ChatRequest(written.append, [].append if notes is None else notes)
    tree = request.run(engine, [1], 1, Sampling())
    return request, tree, written


def test_signal_ends_a_request_with_what_there_is():
    request, tree, written = run(StubbornEngine(signal.SIGTERM, obeys=True))
    assert tree is not None and request.stopped_by == signal.SIGTERM
    assert written == ["word", " more", " and the rest"]


def test_request_that_does_not_end_is_given_up(monkeypatch):
    """The engine compiles, which cannot be stopped: the chat goes on without it."""
    monkeypatch.setattr(chat_request, "_PATIENCE_S", 0.1)
    engine = StubbornEngine(signal.SIGTERM)
    request, tree, written = run(engine)
    assert tree is None and request.stopped_by == signal.SIGTERM
    engine.may_end.set()
    assert engine.has_ended.wait(DEADLINE_S)
    assert request.text == "word" and written == ["word"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (Status(phase="compile", message="preparing the decode step"), "preparing the"),
        (Status(phase="decode", generated_tokens=7), "7 tokens so far"),
    ],
)
def test_silence_is_broken(monkeypatch, status, said):
    monkeypatch.setattr(chat_request, "_QUIET_S", 0.1)
    engine, notes = StubbornEngine(status=status), []

    def note(text):
        notes.append(text)
        engine.may_end.set()

    run(engine, note)
    assert said in notes[0]
