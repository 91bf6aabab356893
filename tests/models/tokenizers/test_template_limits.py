"""Chat templates that would loop for ever or make gigabytes, and large chats."""

import json
import threading

import pytest

from deft_jax.errors import DeftError
from deft_jax.models.tokenizers import template_limits
from deft_jax.models.tokenizers.chat_template import render_chat_template

MESSAGES = [{"role": "user", "content": "hi"}]
MILLIONS = "{% set b = 'a' * 4000000 %}"
MANY = "range(100000)|map(attribute='nope', default=b)"
NUMBERS = "{% set r = range(100000) %}"


def repeated(step, start="'a' * 100000"):
    """Write a template that makes a value out of itself a hundred times."""
    loop = f"{{% for i in range(100) %}}{{% set n.x = {step} %}}{{% endfor %}}"
    return f"{{% set n = namespace(x={start}) %}}{loop}{{{{ n.x }}}}"


ENDLESS = [
    NUMBERS + "{% for a in r %}" * 3 + "{% endfor %}" * 3,
    NUMBERS + "{% for a in r %}{% for b in r if false %}" + "{% endfor %}" * 2,
    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
]
LARGE = [
    "{% for x in [[1], [1]] recursive %}{{ loop([[1], [1]]) }}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ ([0] * 10**9)|length }}",
    "{{ 10 ** (10 ** 10) }}",
    repeated("n.x * n.x", "10"),
    repeated("n.x + n.x"),
    repeated("n.x ~ n.x"),
    repeated("[n.x, n.x]"),
    repeated("(n.x, n.x)"),
    repeated("{'a': n.x, 'b': n.x}"),
    "{{ 'a'|center(1000000000) }}",
    "{{ 'a'.ljust(10**9) }}{{ 'a'.rjust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ ('\\t' * 100000).expandtabs(100000) }}",
    "{% set a = 'a' * 1000000 %}{{ a.replace('a', a) }}",
    "{% set a = 'a' * 1000000 %}{{ a|replace('a', a) }}",
    "{{ (['a'] * 100000)|join('a' * 1000000) }}",
    "{{ ('a' * 1000000).join(['a'] * 100000) }}",
    MILLIONS + f"{{{{ {MANY}|join }}}}",
    MILLIONS + f"{{{{ ''.join({MANY}) }}}}",
    MILLIONS + f"{{{{ {MANY}|list }}}}",
    MILLIONS + "{% macro m() %}{{ varargs }}{% endmacro %}" + f"{{{{ m(*({MANY})) }}}}",
    "{{ range(100000)|map('string')|map('center', 100000)|list|length }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%1000000000d'|format(1) }}",
    MILLIONS + "{{ ('%(a)s' * 100000) % {'a': b} }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{a}{b}}'.format(1, a='1000000', b='000') }}",
    MILLIONS + "{{ ('{0}' * 100000).format(b) }}",
    MILLIONS + "{% set n = namespace(x=b) %}{{ ('{0.x}' * 100000).format(n) }}",
    MILLIONS + "{{ ('{a}' * 100000).format_map({'a': b}) }}",
    "{{ ('{:1000000000}'|safe).format(1) }}",
    "{{ ('a\\n' * 100000)|indent(100000) }}",
    "{{ ('a ' * 10000)|wordwrap(1, wrapstring='a' * 1000000) }}",
    "{{ [1]|tojson(indent=10**9) }}",
    "{{ [1]|batch(10**9, 1)|list }}",
    "{{ [1]|slice(10**9)|list }}",
    "{{ ([[1]] * 900000)|sum(start=[]) }}",
    "{{ 5|round(-10**9) }}",
    "{{ (5).to_bytes(10**10) }}",
    "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "{{ lipsum(n=10**9) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    MILLIONS + "{% macro m() %}{% for i in range(100) %}{{ b }}{% endfor %}"
    "{% endmacro %}{{ m()|length }}",
    MILLIONS + "{% set x %}{% for i in range(100) %}{{ b }}{% endfor %}{% endset %}",
    MILLIONS + "{% filter upper %}{% for i in range(100) %}{{ b }}{% endfor %}"
    "{% endfilter %}",
    MILLIONS + "{% for i in range(100) %}{{ b }}{% endfor %}",
    MILLIONS + "".join(f"{{% set v{i} = b ~ '{i}' %}}" for i in range(100)),
    "{% set b = [1] * 900000 %}"
    + "".join(f"{{% set v{i} = b[:] %}}" for i in range(50)),
    MILLIONS + "{{ " + " ~ ".join(["b"] * 1000) + " }}",
    "{{ ('<!--' * 3000000)|striptags }}",
    "{{ strftime_now('%Y' * 1000000) }}",
    "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "a" * 2_000_000,
    "{{ raise_exception('x' * 16000000) }}",
]


def refused(source):
    with pytest.raises(DeftError, match="chat template failed: ") as caught:
        render_chat_template(source, MESSAGES)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_that_loops_for_ever_is_ended(source, monkeypatch):
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.1)
    assert "it took more than 0.1 seconds" in refused(source)


@pytest.mark.parametrize("source", LARGE, ids=range(len(LARGE)))
def test_a_template_that_makes_too_much_is_ended(source):
    assert "seconds" not in refused(source)


def test_the_limits_hold_in_every_thread_alone(monkeypatch):
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.2)
    messages = []
    source = ENDLESS[0]
    threads = [
        threading.Thread(target=lambda: messages.append(refused(source)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert render_chat_template("{{ messages[0].content }}", MESSAGES) == "hi"
    for thread in threads:
        thread.join()
    assert len(messages) == 3


def test_a_namespace_may_hold_itself():
    source = "{% set n = namespace() %}{% set n.a = n %}{{ n is defined }}"
    assert render_chat_template(source, MESSAGES) == "True"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}",
        "{% set n = namespace(x='') %}{% for m in messages %}"
        "{% set n.x = n.x + m.role + m.content %}{% endfor %}{{ n.x }}",
        "{% for m in messages %}{{ m.role }}{{ m.content.replace('zz', '') }}"
        "{% set rest = messages[loop.index0:]|selectattr('role')|list %}{% endfor %}",
        "{% for m in messages %}{{ '%s%s' % (m.role, m.content) }}{% endfor %}",
        "{% for m in messages %}{{ '{}{}'.format(m.role, m.content) }}{% endfor %}",
    ],
)
def test_long_conversations_are_no_attack(source):
    turn = {"role": "user", "content": "word " * 500}
    expected = 200 * ("user" + turn["content"])
    assert render_chat_template(source, [turn] * 200) == expected


def test_one_message_may_be_larger_than_the_limit_of_values():
    content = "x" * (template_limits.MAX_VALUE + 5)
    turn = {"role": "user", "content": content}
    source = "{{ (messages[0].content ~ '!')|trim }}"
    assert len(render_chat_template(source, [turn])) == len(content) + 1


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 1700000000|string + ('%05d' % 1700000000) }}", "1700000000" * 2),
        ("{{ 123456789|center(12) }}", " 123456789  "),
        ("{{ 2000|round }} {{ 2.345|round(2) }}", "2000 2.35"),
        ("{{ 'a b'.split(' ')|join(', ') }}{{ (1, 2) }}", "a, b(1, 2)"),
        ("{% for a, b in [(1, 2)] %}{{ a ~ b }}{% endfor %}", "12"),
        ("{{ {'a': 1}.items()|list }} {{ {'a': 1}|items|list }}", "[('a', 1)] " * 2),
        ("{{ [3, 1]|sort|first }}{{ [[1], [2]]|sum(start=[]) }}", "1[1, 2]"),
        ("{{ '{:>5}|{:,}'.format('a', 12345) }}", "    a|12,345"),
        ("{{ 'a\nb'|indent(2) }}", "a\n  b"),
        ("{{ ('<'|e) ~ 'x' }}", "&lt;x"),
        ("{{ ('<'|safe) ~ '<' }}", "<<"),
        ("{% autoescape true %}{{ ('<'|safe) ~ '<' }}{% endautoescape %}", "<&lt;"),
        ("{{ nothing is defined }}{{ nothing }}{{ nothing ~ '' }}", "False"),
        ("{% set x = cycler('a', 'b') %}{{ x.next() }}{{ x.next() }}", "ab"),
    ],
)
def test_what_templates_do_is_as_before(source, text):
    assert render_chat_template(source, MESSAGES).strip() == text.strip()


def test_json_with_indent():
    tools = [{"name": f"f{i}", "parameters": {"a": [1, "é"]}} for i in range(200)]
    text = render_chat_template("{{ tools|tojson(indent=4) }}", [], tools=tools)
    assert text == json.dumps(tools, indent=4, ensure_ascii=False)
