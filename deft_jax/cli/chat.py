"""`deft-jax chat`: a conversation that keeps its keys and values."""

import argparse
import io
import signal
import sys
from typing import Any

from deft_jax.cli.chat_input import (
    TerminalLines,
    history_path,
    is_terminal,
    read_entry,
    read_piped_line,
)
from deft_jax.cli.conversation import Conversation
from deft_jax.cli.error_text import error_text
from deft_jax.cli.interrupt import Interrupt, exit_code
from deft_jax.cli.view import write_progress
from deft_jax.errors import DeftError


def chat(options: argparse.Namespace) -> int:
    """Run the command and return its exit code.

    On a terminal an error ends what was asked for; elsewhere it ends the command.

    Raises:
        DeftError: an option or the model cannot be used.
        OSError: standard output or a file cannot be written, without a terminal.
    """
    talks = is_terminal()
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What is no UTF-8 is refused by the tokenizer, on one line.
        sys.stdin.reconfigure(errors="surrogateescape")
    write_progress(f"opening {options.model}")
    with Interrupt():
        from deft_jax.cli.chat_answers import open_answerer
        from deft_jax.cli.chat_commands import Chat, Output

        conversation = Conversation(options.system)
        answerer = open_answerer(options, conversation.asking("Hello"))
    talk = Chat(answerer, conversation, Output(_write, _note))
    if talks:
        _note(f"{options.model}, {answerer.context} tokens of context; /help for help")
    return _converse(talk, answerer) if talks else _run_through(talk, answerer)


def _converse(talk: Any, answerer: Any) -> int:
    """Take entries of a person until there are no more; return the exit code."""
    read_line = TerminalLines(history_path())
    goes_on = True
    while goes_on:
        try:
            entry = read_entry(read_line)
            if entry is None:
                _note("")
                break
            goes_on = talk.take(entry)
        except KeyboardInterrupt:
            _note("\n(Ctrl-D or /quit ends the chat)")
        except BrokenPipeError:
            raise
        except (DeftError, OSError) as error:
            write_progress(f"error: {error_text(error)}")
        if answerer.stopped_by not in (None, signal.SIGINT):
            return exit_code(answerer.stopped_by)
    return 0


def _run_through(talk: Any, answerer: Any) -> int:
    """Take the entries of a file or a pipe, which any signal ends."""
    while (entry := read_entry(read_piped_line)) is not None and talk.take(entry):
        if answerer.stopped_by is not None:
            return exit_code(answerer.stopped_by)
    return 0


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
