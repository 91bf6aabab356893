"""Requests as JSON lines: each with its prompt and, where it says so, its settings."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deft_jax
from deft_jax.cli.error_text import error_text
from deft_jax.cli.prompts import encode_prompt, read_prompts
from deft_jax.cli.sampling_options import sampling_values
from deft_jax.cli.strategies import STRATEGIES
from deft_jax.errors import DeftError
from deft_jax.sampling.numbers import as_integer

_STRATEGY = ("strategy", "n", "answer_pattern")
_PROMPT = ("prompt", "messages", "tools", "template_args")
_OTHERS = ("id", "priority")


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the input, which may be wrong.

    Attributes:
        number: number of the line, from 1.
        id: what the line gives as such, otherwise its number.
        fields: what it says.
        error: what is wrong with it; None if nothing is so far.
    """

    number: int
    id: Any
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None

    def failed(self, error: Exception) -> "Line":
        """Return the line with what is wrong with it."""
        return dataclasses.replace(self, error=error_text(error))


@dataclasses.dataclass(frozen=True)
class Job:
    """A line that can be run.

    Attributes:
        line: where it comes from.
        prompt: token ids.
        shown: what the user asked, without a chat template.
        strategy: how its tree grows.
        sampling: how its tokens are chosen.
        priority: higher ones start first.
    """

    line: Line
    prompt: list[int]
    shown: str
    strategy: "deft_jax.BestOfN"
    sampling: "deft_jax.Sampling"
    priority: int


def read_lines(options: argparse.Namespace) -> list[Line]:
    """Return the lines of `--input`, or one for each prompt of the other options.

    Raises:
        DeftError: there is no line, or the input is not UTF-8.
        OSError: the file cannot be read.
    """
    if options.input is None:
        prompts = read_prompts(options)
        return [Line(i, i, {"prompt": text}) for i, text in enumerate(prompts, 1)]
    name, content = _read(options.input)
    lines = list(_parsed(content, name))
    if not lines:
        raise DeftError(f"{name}: expected JSON lines, got none")
    return lines


def make_job(
    line: Line,
    options: argparse.Namespace,
    tools: list[dict[str, Any]] | None,
    tokenizer: Any,
) -> Job:
    """Return what a line asks for; options of the command fill in what it leaves out.

    Args:
        line: one without an error.
        options: those of `generate`.
        tools: those of `--tools`.
        tokenizer: encodes the prompt.

    Raises:
        DeftError: something in the line cannot be used.
    """
    fields = line.fields
    names = {field.name for field in dataclasses.fields(deft_jax.Sampling)}
    known = sorted({*names, *_STRATEGY, *_PROMPT, *_OTHERS})
    if unknown := sorted(set(fields) - set(known)):
        raise DeftError(f"unknown key {unknown[0]!r:.40}; known are {', '.join(known)}")
    prompt, shown = _prompt(fields, options, tools, tokenizer)
    own = {name: value for name, value in fields.items() if name in names}
    priority = as_integer("priority", fields.get("priority", 0), -(2**31), 2**31 - 1)
    return Job(
        line,
        prompt,
        shown,
        _strategy(fields, options),
        deft_jax.Sampling(**{**sampling_values(options), **_biased(own)}),
        priority,
    )


def _read(path: str) -> tuple[str, bytes]:
    if path != "-":
        return path, Path(path).read_bytes()
    if sys.stdin is None:
        raise DeftError("--input -: standard input is closed")
    return "standard input", sys.stdin.buffer.read()


def _parsed(content: bytes, name: str) -> Iterator[Line]:
    """Yield the lines that are not blank."""
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        line = Line(number, number)
        try:
            fields = json.loads(raw.decode())
        except (ValueError, RecursionError) as error:
            yield line.failed(DeftError(f"expected a JSON object in UTF-8: {error}"))
            continue
        if isinstance(fields, dict):
            yield Line(number, fields.get("id", number), fields)
        else:
            shown = raw.strip().decode()
            yield line.failed(DeftError(f"expected a JSON object, got {shown:.40}"))


def _prompt(
    fields: dict[str, Any],
    options: argparse.Namespace,
    tools: list[dict[str, Any]] | None,
    tokenizer: Any,
) -> tuple[list[int], str]:
    """Return the token ids of a line, and what the user asked."""
    if ("prompt" in fields) == ("messages" in fields):
        raise DeftError("expected either prompt or messages")
    tools = fields.get("tools", tools)
    if tools not in (None, []) and not _is_list_of(dict, tools):
        raise DeftError(f"tools must be a list of objects, got {tools!r:.40}")
    own_args = fields.get("template_args", {})
    if not isinstance(own_args, dict):
        raise DeftError(f"template_args must be an object, got {own_args!r:.40}")
    args = {**dict(options.template_arg), **own_args}
    if "messages" in fields:
        messages = fields["messages"]
        if not _is_list_of(dict, messages):
            raise DeftError(
                "messages must be a list of objects with role and content, got"
                f" {messages!r:.40}"
            )
        if options.system and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": options.system}, *messages]
        ids = tokenizer.encode_chat(messages, tools=tools, template_args=args)
        return ids, str(messages[-1].get("content"))
    prompt: Any = fields["prompt"]
    if _is_list_of(int, prompt):
        return prompt, tokenizer.decode(prompt, skip_special_tokens=False)
    if not isinstance(prompt, str) or not prompt:
        raise DeftError(
            f"prompt must be a text or a list of token ids, got {prompt!r:.40}"
        )
    encoded = encode_prompt(options, prompt, tools, args, tokenizer)
    return tokenizer.encode(encoded) if isinstance(encoded, str) else encoded, prompt


def _is_list_of(kind: type, value: Any) -> bool:
    """Say whether a value is a list of one kind that is not empty; true is no int."""
    return isinstance(value, list) and {type(item) for item in value} == {kind}


def _biased(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings with the token ids of `logit_bias`, which JSON has as text."""
    bias = values.get("logit_bias")
    if not isinstance(bias, dict):
        return values
    try:
        return {**values, "logit_bias": {int(k): v for k, v in bias.items()}}
    except ValueError:
        raise DeftError(
            f"logit_bias needs token ids as keys, got {bias!r:.40}"
        ) from None


def _strategy(fields: dict[str, Any], options: argparse.Namespace) -> Any:
    """Return the strategy that a line asks for."""
    chosen = {name: fields.get(name, getattr(options, name)) for name in _STRATEGY}
    name, pattern = chosen["strategy"], chosen["answer_pattern"]
    if not isinstance(name, str) or name not in STRATEGIES:
        known = " or ".join(STRATEGIES)
        raise DeftError(f"strategy must be {known}, got {name!r:.40}")
    if pattern is not None and not isinstance(pattern, str):
        raise DeftError(f"answer_pattern must be a text, got {pattern!r:.40}")
    return STRATEGIES[name](argparse.Namespace(**chosen))
