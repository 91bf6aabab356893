"""Chat templates: the Jinja source in a checkpoint that turns messages into a prompt.

The environment is the one for which checkpoints write their templates, that of
Hugging Face transformers: sandboxed, blocks trimmed, with `raise_exception`,
`strftime_now`, `{% break %}`, `{% generation %}` and a `tojson` that leaves HTML alone.
Unlike there, a template has limits of time and size.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser

from deft_jax.errors import DeftError

from .template_limits import MAX_SOURCE, end_budget, start_budget
from .template_sandbox import LimitedEnvironment, limited_filter

_OWN_ARGUMENTS = {"messages", "tools", "add_generation_prompt"}


def render_chat_template(
    source: str | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    template_args: Mapping[str, Any] | None = None,
    bos_token: str | None = None,
    eos_token: str | None = None,
) -> str:
    """Return the prompt that the template `source` makes of `messages`.

    Args:
        source: Jinja source, None if the checkpoint has none.
        messages: turns, oldest first, each with at least `role` and `content`.
        tools: JSON schemas of the functions that the model may call.
        add_generation_prompt: end with the opening of the assistant's turn.
        template_args: variables of the template's own, such as `enable_thinking`;
            they win over `bos_token` and `eos_token`.
        bos_token: text of the token that begins a sequence, undefined where None.
        eos_token: text of the token that ends an answer, undefined where None.

    Raises:
        DeftError: there is no template, it is broken, it refuses the messages, or
            `template_args` names a variable that has an argument of its own.
    """
    if source is None:
        raise DeftError(
            "expected a chat template in the checkpoint, found none; "
            "leave out --chat to give the model the plain prompt"
        )
    if taken := _OWN_ARGUMENTS & set(template_args or ()):
        raise DeftError(
            f"expected template arguments other than {sorted(_OWN_ARGUMENTS)}, got "
            f"{sorted(taken)}; give these as arguments of their own"
        )
    tokens = {"bos_token": bos_token, "eos_token": eos_token}
    variables: dict[str, Any] = {"documents": None}
    variables |= {name: text for name, text in tokens.items() if text is not None}
    variables |= template_args or {}
    variables["messages"] = [dict(message) for message in messages]
    variables["tools"] = None if tools is None else [dict(tool) for tool in tools]
    variables["add_generation_prompt"] = add_generation_prompt
    try:
        return _rendered(source, variables)
    except Exception as error:  # A template may fail as any program may.
        reason = " ".join(str(error)[:500].split()) or type(error).__name__
        raise DeftError(f"the checkpoint's chat template failed: {reason}") from error


def _rendered(source: str, variables: dict[str, Any]) -> str:
    if len(source) > MAX_SOURCE:
        raise ValueError(
            f"expected at most {MAX_SOURCE} characters of template, got {len(source)}"
        )
    template = _compiled(source)
    budget = start_budget(variables)
    try:
        return template.render(variables)
    finally:
        end_budget(budget)


class _Generation(jinja2.ext.Extension):
    """Lets `{% generation %}`, which marks text to train on, stand for its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    environment = LimitedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = limited_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > 1000:
        raise ValueError(
            f"expected a date format of 1000 characters, got {len(format)}"
        )
    return datetime.now().strftime(format)
