"""Requests as JSON lines, in this process and with a tiny model."""

import argparse
import io
import json
import sys
import types

import pytest

from deft_jax.cli.arguments import build_parser
from deft_jax.cli.main import main
from deft_jax.cli.request_lines import make_job, read_lines
from deft_jax.errors import DeftError
from deft_jax.results.terminal_text import printable
from deft_jax.strategies.parallel import BestOfN
from tests.cli.test_chat_cli import ChatTokenizer, open_chat_model
from tests.cli.test_generate_tiny import Opened
from tests.support.tiny_model import Sampling, decode_alone

COMMON = ("--max-new-tokens", "6", "--n", "1", "--temperature", "0")
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def opened(monkeypatch) -> Opened:
    return open_chat_model(monkeypatch)


def written(tmp_path, *lines) -> str:
    """Return the path of a file with these lines, of which texts stay as they are."""
    path = tmp_path / "in.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return str(path)


@pytest.mark.usefixtures("opened")
def test_each_line_has_its_own_settings_and_a_bad_one_stops_no_other(tmp_path, capsys):
    path = written(
        tmp_path,
        {"id": "a", "prompt": "abc"},
        {"prompt": [97, 98], "max_new_tokens": 3, "temperature": 0.8, "seed": 5},
        "",
        "{not json",
        {"id": 7, "messages": MESSAGES, "n": 2, "priority": 3},
        {"id": "bad", "prompt": "abc", "top_p": 2},
        {"id": "long", "prompt": "a" * 200},
    )
    assert main(["generate", "--input", path, "--jsonl", *COMMON]) == 1
    output = capsys.readouterr()
    found = {line["line"]: line for line in map(json.loads, output.out.splitlines())}
    assert sorted(found) == [1, 2, 4, 5, 6, 7]
    assert [found[n]["id"] for n in (1, 2, 5, 6)] == ["a", 2, 7, "bad"]
    texts = {
        n: [branch["text"] for branch in line["branches"]]
        for n, line in found.items()
        if "branches" in line
    }
    greedy = Sampling(max_new_tokens=6, temperature=0.0)
    own = Sampling(max_new_tokens=3, temperature=0.8, seed=5)
    chat = ChatTokenizer().encode_chat(MESSAGES)
    assert texts == {
        1: [decode_alone("abc", greedy).text],
        2: [decode_alone([97, 98], own).text],
        5: [decode_alone(chat, greedy).text] * 2,
    }
    errors = [line for line in output.err.splitlines() if "error: line" in line]
    assert [line.split("error: ")[1].split(":")[0] for line in errors] == [
        "line 4",
        "line 6",
        "line 7",
    ]
    assert "top_p must be above 0" in found[6]["error"]
    assert "context of 128" in found[7]["error"]


def test_only_bad_lines_are_code_2_and_load_nothing(opened, tmp_path, capsys):
    path = written(tmp_path, "[1]", {"prompt": "a", "nonsense": 1})
    assert main(["generate", "--input", path, "--json", *COMMON]) == 2
    output = capsys.readouterr()
    assert [json.loads(line)["line"] for line in output.out.splitlines()] == [1, 2]
    assert "expected a JSON object, got [1]" in output.err
    assert "unknown key 'nonsense'; known are answer_pattern, " in output.err
    assert not opened.is_loaded


@pytest.mark.usefixtures("opened")
def test_standard_input_and_a_file_for_the_outcome(tmp_path, monkeypatch, capsys):
    raw = (json.dumps({"id": "x", "prompt": "abc"}) + "\n").encode()
    stdin = types.SimpleNamespace(buffer=io.BytesIO(raw))
    monkeypatch.setattr(sys, "stdin", stdin)
    path = tmp_path / "out.jsonl"
    arguments = ("--input", "-", "--jsonl", "--output", str(path))
    assert main(["generate", *arguments, *COMMON]) == 0
    assert capsys.readouterr().out == ""
    [line] = path.read_text().splitlines()
    assert json.loads(line)["id"] == "x"


@pytest.mark.usefixtures("opened")
def test_prompts_of_the_options_make_lines_too_and_lines_make_text(tmp_path, capsys):
    assert main(["generate", "--prompt", "abc", "--jsonl", *COMMON]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["prompt"] == "abc"
    path = written(tmp_path, {"id": "first", "prompt": "abc"})
    assert main(["generate", "--input", path, *COMMON]) == 0
    text = decode_alone("abc", Sampling(max_new_tokens=6, temperature=0.0)).text
    shown = capsys.readouterr().out
    assert shown.startswith("[first]\n") and printable(text).strip("\n") in shown


def job_of(line, *arguments):
    """Return the job of the one line of a file."""
    options = build_parser().parse_args(["generate", "--input", "-", *arguments])
    return make_job(line, options, None, ChatTokenizer())


def line_of(tmp_path, fields):
    options = argparse.Namespace(input=written(tmp_path, fields))
    [line] = read_lines(options)
    return line


def test_options_fill_in_what_a_line_leaves_out(tmp_path):
    line = line_of(tmp_path, {"prompt": "a", "seed": 3, "logit_bias": {"5": -1}})
    job = job_of(line, "--seed", "9", "--top-k", "4", "--n", "3")
    assert job.strategy == BestOfN(3)
    assert job.sampling == Sampling(seed=3, top_k=4, logit_bias={5: -1.0})
    system = job_of(line_of(tmp_path, {"messages": MESSAGES}), "--system", "be kind")
    assert bytes(system.prompt) == b"sbe kind|uhi|a"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected either prompt or messages"),
        ({"prompt": "a", "messages": MESSAGES}, "expected either prompt or messages"),
        ({"prompt": ""}, "a text or a list of token ids, got ''"),
        ({"prompt": [True]}, "a text or a list of token ids"),
        ({"messages": []}, "a list of objects with role and content"),
        ({"prompt": "a", "n": 0}, "n must be at least 1"),
        ({"prompt": "a", "n": "2"}, "n must be an integer"),
        ({"prompt": "a", "strategy": "beam"}, "best-of-n or self-consistency"),
        ({"prompt": "a", "priority": 1.5}, "priority must be an integer"),
        ({"prompt": "a", "temperature": "hot"}, "temperature must be"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "token ids as keys"),
        ({"prompt": "a", "tools": 3}, "tools must be a list"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, fields, message):
    with pytest.raises(DeftError, match=message):
        job_of(line_of(tmp_path, fields))
