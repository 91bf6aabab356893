"""The parser of a command: errors on one line, options only when they are needed."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

AddOptions = Callable[[argparse.ArgumentParser], None]


class CommandParser(argparse.ArgumentParser):
    """A parser that reports an error on one line and exits with code 2.

    The options of a command may take imports that other commands, and `--help`, need
    not wait for. So they are added when the command is parsed.
    """

    def __init__(self, *, add_options: AddOptions | None = None, **options: Any):
        """Prepare to parse.

        Args:
            add_options: adds the options to this parser before it parses; None if they
                are added from outside.
            options: arguments of `argparse.ArgumentParser`.
        """
        super().__init__(allow_abbrev=False, **options)
        self._add_options = add_options

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        """Add the options that are still missing, then parse."""
        if self._add_options is not None:
            add_options, self._add_options = self._add_options, None
            add_options(self)
        return super().parse_known_args(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        """Print the error without the usage, which --help shows."""
        from deft_jax.results.terminal_text import one_line

        if message.startswith("the following arguments are required"):
            message += f"; see {self.prog} --help"
        self.exit(2, f"deft-jax: error: {one_line(message)}\n")
