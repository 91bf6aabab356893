"""The installed command `chat` on a pseudo terminal, with the real model."""

import os
import pty
import re
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

COMMAND = Path(sysconfig.get_path("scripts")) / "deft-jax"
DEADLINE_S = 300
CTRL_C, CTRL_D = b"\x03", b"\x04"


ENTER = """
import os, signal, sys
os.login_tty(0)  # Its own session, so that Ctrl-C of the terminal is a signal to it.
signal.signal(signal.SIGINT, signal.SIG_DFL)  # Even if it is ignored.
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Run by a process of its own: JAX warns of a fork of one that it runs in."""


class Terminal:
    """A process on a pseudo terminal; `output` is all it has written."""

    def __init__(self, command, environment):
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ENTER, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
        )
        os.close(slave)
        self.output = b""
        self._watchdog = threading.Timer(DEADLINE_S, self.process.kill)
        self._watchdog.start()

    def wait_for(self, pattern: bytes) -> None:
        """Read until what was written contains a match."""
        while re.search(pattern, self.output) is None:
            try:
                self.output += os.read(self._master, 4096)
            except OSError:  # The process has ended.
                pytest.fail(f"expected {pattern!r}, got {self.output!r}")

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        try:
            while data := os.read(self._master, 4096):
                self.output += data
        except OSError:
            pass  # Linux reports the end of a pseudo terminal as an error.
        os.close(self._master)
        code = self.process.wait()
        self._watchdog.cancel()
        return code


@pytest.mark.usefixtures("smollm2_path")
def test_ctrl_c_stops_an_answer_and_ctrl_d_ends(tmp_path):
    environment = os.environ | {
        "TERM": "dumb",
        "XDG_CACHE_HOME": str(tmp_path),
        # JAX's own cache is that of the whole suite.
        "DEFT_JAX_CACHE": "",
    }
    small = ("--max-context", "1024", "--max-forks", "1", "--max-new-tokens", "900")
    terminal = Terminal([COMMAND, "chat", *small, "--temperature", "0"], environment)
    terminal.wait_for(b"> ")
    question = b"Write a very long story of a cat and of the sea."
    terminal.type(question + b"\r")
    # Notes stand in parentheses; this is some of the answer.
    terminal.wait_for(rb"sea\.\r\n(\(.*\r\n)*[^(\r\n][^\r\n]{20}")
    terminal.type(CTRL_C)
    terminal.wait_for(rb"\(stopped; what there is of the answer is kept\)\r\n> $")
    terminal.type(b"/save " + os.fsencode(tmp_path / "chat.json") + b"\r")
    terminal.wait_for(rb"\(2 messages written to .*\r\n> $")
    terminal.type(CTRL_D)
    assert terminal.end() == 0, terminal.output
    assert b"Traceback" not in terminal.output
    history = (tmp_path / "deft-jax" / "chat_history").read_bytes()
    assert question in history and b"/save" in history
