"""The prompts of a command, from its options, a file or standard input."""

import argparse
import sys
from pathlib import Path

from deft_jax.errors import DeftError


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Return the prompts that the options of `generate` name.

    Raises:
        DeftError: there is none, one is empty or is not UTF-8, or `--system` was
            given without `--chat`.
        OSError: the file cannot be read.
    """
    if options.system is not None and not options.chat:
        raise DeftError("--system needs --chat, which applies the chat template")
    if options.prompt is not None:
        named = [(_ordinal(i, options.prompt), t) for i, t in enumerate(options.prompt)]
    elif options.prompt_file is not None:
        content = Path(options.prompt_file).read_bytes()
        named = [(options.prompt_file, _decode(content, options.prompt_file))]
    else:
        named = [("standard input", _read_standard_input())]
    return [_checked(name, text) for name, text in named]


def _ordinal(index: int, prompts: list[str]) -> str:
    return f"--prompt number {index + 1}" if len(prompts) > 1 else "--prompt"


def _read_standard_input() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise DeftError(
            "no prompt: give --prompt TEXT or --prompt-file FILE, or pipe a text in"
        )
    return _decode(sys.stdin.buffer.read(), "standard input")


def _decode(content: bytes, name: str) -> str:
    """Return UTF-8 text without its byte order mark and its last line end."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind the byte order mark.
        offset = error.start + len(content) - len(error.object)
        raise DeftError(
            f"{name}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x}"
            f" at offset {offset}; convert the text to UTF-8"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def _checked(name: str, text: str) -> str:
    if not text.strip():
        raise DeftError(f"{name}: expected a text, got an empty prompt")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DeftError(
            f"{name}: expected UTF-8 text, got an invalid byte at character"
            f" {error.start}"
        ) from None
    return text
