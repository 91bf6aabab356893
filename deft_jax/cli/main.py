"""The command `deft-jax`: runs a subcommand and turns errors into exit codes."""

import os
import sys
from collections.abc import Sequence

from deft_jax.cli.arguments import build_parser
from deft_jax.cli.interrupt import INTERRUPTED
from deft_jax.errors import DeftError

_FAILED = 2
_BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 is success, 2 an error of the caller, 130 an end by Ctrl-C, and 141 a reader of
    standard output that went away.

    Args:
        arguments: without the program's name; those of the process by default.

    Raises:
        SystemExit: after `--help`, `--version` and errors in the arguments.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 gets escapes in place of a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        try:
            return _run(arguments)
        finally:
            # Also after --help, which exits: a reader that is gone shows only now.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (DeftError, OSError) as error:
        return _fail(_message(error))
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _fail(
            "the device is out of memory; use fewer branches (--n), a smaller"
            f" --max-context or --dtype bfloat16: {_message(error)}"
        )


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    # Wrong arguments need not wait for the imports of the commands.
    if options.command == "generate":
        from deft_jax.cli.generate import generate as command
    elif options.command == "bench":
        from deft_jax.bench.command import bench as command
    elif options.command == "tune":
        from deft_jax.cli.tune import tune as command
    else:
        from deft_jax.cli.info import info as command
    return command(options)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return name + error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str) -> int:
    from deft_jax.results.terminal_text import one_line

    print(f"deft-jax: error: {one_line(message)}", file=sys.stderr)
    return _FAILED
