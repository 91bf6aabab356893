"""The command `deft-jax`: runs a subcommand and turns errors into exit codes."""

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

_FAILED = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def run() -> NoReturn:
    """Run the command line and end the process, whatever still compiles beside it."""
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 is success, 1 a result that cannot be trusted, 2 an error of the caller, 141 a
    reader of standard output that went away, and 128 + N an end by signal N: 130 is
    Ctrl-C.

    Args:
        arguments: without the program's name; those of the process by default.

    Raises:
        SystemExit: after `--help`, `--version` and errors in the arguments.
    """
    try:
        return _guarded(arguments)
    except KeyboardInterrupt:
        return _INTERRUPTED


def _guarded(arguments: Sequence[str] | None) -> int:
    """Run the command line with errors as one line and an exit code."""
    # Imported here, so that Ctrl-C is caught meanwhile.
    from deft_jax.cli.error_text import error_text
    from deft_jax.errors import DeftError

    is_closed = _open_streams()
    try:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return _run(arguments, is_closed)
        finally:
            # Also after --help, which exits: a reader that is gone shows only now.
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return _BROKEN_PIPE
    except (DeftError, OSError) as error:
        return _fail(error_text(error))
    except (RuntimeError, MemoryError) as error:
        from deft_jax.engine.device_memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return _fail(
            "the device is out of memory; use fewer branches (--n), a smaller"
            f" --max-context or --dtype bfloat16: {error_text(error)}"
        )


def _run(arguments: Sequence[str] | None, is_closed: bool) -> int:
    from deft_jax.cli.arguments import parse
    from deft_jax.cli.interrupt import Interrupt
    from deft_jax.errors import DeftError

    options = parse(arguments)
    if is_closed and getattr(options, "output", None) is None:
        raise DeftError("standard output is closed; redirect it to a file or a pipe")
    # Wrong arguments need not wait for the imports of the commands.
    if options.command == "generate":
        from deft_jax.cli.generate import generate as command

        return command(options)
    if options.command == "chat":
        from deft_jax.cli.chat import chat as command

        return command(options)
    with Interrupt():  # An import may swallow KeyboardInterrupt.
        from deft_jax.cli.device import start_backend

        start_backend()
        if options.command == "bench":
            from deft_jax.bench.command import bench as command
        elif options.command == "tune":
            from deft_jax.cli.tune import tune as command
        else:
            from deft_jax.cli.info import info as command
    return command(options)


def _open_streams() -> bool:
    """Make the standard streams safe to write to; return whether stdout was closed.

    Python has `None` for a stream that was closed, and what the process opens next
    would take its number: a socket would be where libraries write their warnings.
    """
    is_closed = sys.stdout is None
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            _send_to_nowhere(number)
            setattr(sys, name, open(number, "w", closefd=False))
        # A terminal without UTF-8 gets escapes in place of a traceback.
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return is_closed


def _send_to_nowhere(number: int) -> None:
    """Let a file descriptor write to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    if null != number:
        os.dup2(null, number)
        os.close(null)


def _discard_output() -> None:
    """Drop what cannot be written: Python tries once more at exit, and would fail."""
    _send_to_nowhere(sys.stdout.fileno())


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning of Python on one line, without the code that it comes from."""
    _print_line(f"warning: {message}")


def _fail(message: str) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    _print_line(f"error: {message}")
    return _FAILED


def _print_line(message: str) -> None:
    from deft_jax.results.terminal_text import one_line

    with contextlib.suppress(OSError):  # A terminal may be gone.
        print(f"deft-jax: {one_line(message)}", file=sys.stderr, flush=True)
