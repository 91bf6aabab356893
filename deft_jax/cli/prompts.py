"""The prompts of a command, from its options, a file or standard input."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deft_jax.errors import DeftError


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Return the prompts that the options of `generate` name.

    Raises:
        DeftError: there is none, or one is not UTF-8.
        OSError: the file cannot be read.
    """
    if options.prompt is not None:
        for index, text in enumerate(options.prompt):
            _check_utf8(text, index, len(options.prompt))
            if not text:
                raise DeftError("--prompt: expected a text, got an empty prompt")
        return options.prompt
    if options.prompt_file is not None:
        name, content = options.prompt_file, Path(options.prompt_file).read_bytes()
    else:
        name, content = "standard input", _read_standard_input()
    text = _decode(content, name).removesuffix("\n").removesuffix("\r")
    if not text:
        raise DeftError(f"{name}: expected a text, got an empty prompt")
    return [text]


def read_tools(options: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Return the tools of the file that `--tools` names, None without it.

    Raises:
        DeftError: the file is no JSON list of objects.
        OSError: the file cannot be read.
    """
    if options.tools is None:
        return None
    text = _decode(Path(options.tools).read_bytes(), options.tools)
    try:
        tools = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DeftError(f"{options.tools}: expected JSON, got {error}") from None
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise DeftError(
            f"{options.tools}: expected a JSON list of objects, one per tool, got"
            f" {text.strip()!r:.60}"
        )
    return tools


def encode_prompts(
    options: argparse.Namespace,
    prompts: Sequence[str],
    tools: list[dict[str, Any]] | None,
    tokenizer: Any,
) -> list[Any]:
    """Return the prompts as the engine takes them: text or token ids.

    Args:
        options: the options of `generate`.
        prompts: what the user asked.
        tools: what the chat template offers to the model.
        tokenizer: a `deft_jax.models.tokenizers.tokenizer.Tokenizer`.
    """
    template_args = dict(options.template_arg)
    return [
        encode_prompt(options, prompt, tools, template_args, tokenizer)
        for prompt in prompts
    ]


def encode_prompt(
    options: argparse.Namespace,
    prompt: str,
    tools: list[dict[str, Any]] | None,
    template_args: dict[str, Any],
    tokenizer: Any,
) -> Any:
    """Return one prompt as the engine takes it: text or token ids."""
    if options.special:
        return tokenizer.encode(prompt, parse_special=True)
    if not options.chat:
        return prompt
    system = [{"role": "system", "content": options.system}] if options.system else []
    messages = [*system, {"role": "user", "content": prompt}]
    return tokenizer.encode_chat(messages, tools=tools, template_args=template_args)


def _read_standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise DeftError(
            "no prompt: give --prompt TEXT or --prompt-file FILE, or pipe a text in"
        )
    return sys.stdin.buffer.read()


def _decode(content: bytes, name: str) -> str:
    """Return UTF-8 text without its byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind the byte order mark.
        offset = error.start + len(content) - len(error.object)
        raise DeftError(
            f"{name}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x}"
            f" at offset {offset}; convert the text to UTF-8"
        ) from None


def _check_utf8(text: str, index: int, num_prompts: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        name = f"--prompt number {index + 1}" if num_prompts > 1 else "--prompt"
        raise DeftError(
            f"{name}: expected UTF-8 text, got an invalid byte at character"
            f" {error.start}"
        ) from None
