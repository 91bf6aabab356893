"""Rendering of chat templates as checkpoints write them."""

from datetime import datetime

import pytest

from deft_jax.errors import DeftError
from deft_jax.models.tokenizers.chat_template import render_chat_template

MESSAGES = [
    {"role": "user", "content": "1 < 2 & é"},
    {"role": "assistant", "content": "yes"},
]
ROLES = "{% for m in messages %}{{ m.role }} {% endfor %}"


def test_blocks_are_trimmed():
    source = """\
{% for m in messages %}
    {% if true %}
{{ m.role }}
    {% endif %}
{% endfor %}
"""
    assert render_chat_template(source, MESSAGES) == "user\nassistant\n"


def test_loop_controls_work():
    source = "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}"
    assert render_chat_template(source, MESSAGES) == "user"


def test_generation_blocks_stand_for_their_body():
    source = "a{% generation %}{{ messages[1].content }}{% endgeneration %}b"
    assert render_chat_template(source, MESSAGES) == "ayesb"


def test_json_is_not_escaped_for_html():
    source = "{{ messages[0].content | tojson }}{{ {'b': 1, 'a': 2} | tojson }}"
    expected = '"1 < 2 & é"{"b": 1, "a": 2}'
    assert render_chat_template(source, MESSAGES) == expected


def test_json_options():
    source = "{{ {'b': 'é'} | tojson(indent=1, ensure_ascii=true) }}"
    assert render_chat_template(source, MESSAGES) == '{\n "b": "\\u00e9"\n}'


@pytest.mark.parametrize("asked", [True, False])
def test_generation_prompt_on_request(asked):
    source = "{% if add_generation_prompt %}go{% endif %}"
    prompt = render_chat_template(source, MESSAGES, add_generation_prompt=asked)
    assert prompt == ("go" if asked else "")


def test_tokens_are_undefined_where_the_checkpoint_has_none():
    source = "{{ bos_token is defined }} {{ eos_token }}"
    assert render_chat_template(source, [], eos_token="</s>") == "False </s>"


def test_tools_and_documents_are_none():
    source = "{{ tools is none and documents is none }}"
    assert render_chat_template(source, []) == "True"


def test_tools_reach_the_template():
    source = "{% for t in tools %}{{ t.function.name }};{% endfor %}"
    tools = [
        {"type": "function", "function": {"name": name}} for name in ("add", "mul")
    ]
    assert render_chat_template(source, [], tools=tools) == "add;mul;"


def test_template_arguments_reach_the_template():
    source = "{% if enable_thinking %}think{% else %}no{% endif %} {{ eos_token }}"
    thinking = {"enable_thinking": True, "eos_token": "!"}
    assert render_chat_template(source, [], eos_token="</s>") == "no </s>"
    assert render_chat_template(source, [], template_args=thinking) == "think !"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_template_arguments_cannot_stand_for_others(name):
    with pytest.raises(DeftError, match=rf"got \['{name}'\]"):
        render_chat_template(ROLES, MESSAGES, template_args={name: None})


def test_year_of_today():
    year = render_chat_template("{{ strftime_now('%Y') }}", [])
    assert abs(int(year) - datetime.now().year) <= 1


def test_messages_are_not_changed():
    source = "{% set m = messages[0].update({'role': 'x'}) %}{{ messages[0].role }}"
    messages = [{"role": "user", "content": ""}]
    with pytest.raises(DeftError):
        render_chat_template(source, messages)
    assert messages == [{"role": "user", "content": ""}]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "expected a chat template in the checkpoint, found none"),
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{% if %}", "failed: Expected an expression"),
        ("{{ messages[0].nothing + 'a' }}", "nothing"),
        ("{{ messages[0]['content'] / 2 }}", "unsupported operand"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ range(10**9) | list }}", "[Rr]ange"),
    ],
)
def test_failures_are_one_line(source, message):
    with pytest.raises(DeftError, match=message) as caught:
        render_chat_template(source, MESSAGES)
    assert "\n" not in str(caught.value)
