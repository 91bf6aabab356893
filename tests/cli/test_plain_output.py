import json
import signal

import pytest

from deft_jax.cli.plain_output import JsonOutput, TextStream, TreeOutput
from deft_jax.cli.view import counters
from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TokenEvent, TreeNode


def event(text, reason=None):
    return TokenEvent(
        request=0,
        node=1,
        parent=0,
        token=1,
        text=text,
        logprob=-1.0,
        finish_reason=reason,
    )


def make_tree(*texts, notice=None):
    root = TreeNode(id=0, parent=None, tokens=(1,), text="p")
    leaves = [
        TreeNode(id=i, parent=0, tokens=(1,), text=text, logprobs=(-1.0 / i,))
        for i, text in enumerate(texts, 1)
    ]
    stats = Status(
        phase="done",
        elapsed_s=1.25,
        generated_tokens=2,
        kv_bytes_read=25,
        kv_bytes_read_per_sequence=100,
    )
    return GenerationTree(
        request=0, prompt="p", nodes=(root, *leaves), stats=stats, notice=notice
    )


def test_stream_writes_text_as_it_comes(capsys):
    view = TextStream()
    view.on_token(event("one"))
    assert capsys.readouterr().out == "one"
    view.on_token(event(""))
    view.on_token(event(" two\x1b"))
    assert capsys.readouterr().out == " two\\x1b"
    view.finish([make_tree("one two\x1b and", notice="pool full")], {})
    output = capsys.readouterr()
    assert output.out == " and\n"
    assert output.err == "deft-jax: pool full\n"


@pytest.mark.parametrize("text", ["one", "one\n"])
def test_stream_ends_its_last_line_once(text, capsys):
    view = TextStream()
    view.on_token(event(text))
    view.finish([make_tree(text)], {})
    assert capsys.readouterr().out == "one\n"


def test_counters_stand_behind_the_text_on_a_line_of_their_own(capfd):
    view = TextStream()
    view.on_status(Status(phase="decode"))
    view.on_token(event("one"))
    view.on_status(Status(phase="done", generated_tokens=1))
    assert "token" not in capfd.readouterr().err
    view.finish([make_tree("one")], {})
    output = capfd.readouterr()
    assert output.out == "\n"
    assert output.err.startswith("deft-jax: 1 token · ")


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, "deft-jax: stopping; press Ctrl-C again to abort\n"),
        (signal.SIGTERM, "deft-jax: stopping; a second signal aborts\n"),
    ],
)
def test_keys_are_named_only_to_who_has_pressed_them(capsys, number, line):
    JsonOutput().on_interrupt(number)
    assert capsys.readouterr().err == line


def test_trees_are_written_when_they_are_done(capsys):
    view = TreeOutput(["first", "second"])
    view.on_token(event("one"))
    view.finish([make_tree("one", "two\nlines"), make_tree("three")], {})
    assert capsys.readouterr().out.splitlines() == [
        "first",
        "├─ 1 · 1 token · mean log-prob -1.00",
        "│     one",
        "└─ 2 · 1 token · mean log-prob -0.50 · best",
        "      two ↵ lines",
        "",
        "best branch (2):",
        "two",
        "lines",
        "",
        "second",
        "three",
    ]


def test_notice_of_a_single_branch_is_written(capsys):
    TreeOutput(["p"]).finish([make_tree("one", notice="pool full")], {})
    assert capsys.readouterr().out == "one\nnotice: pool full\n"


def test_long_texts_are_cut_unless_all_of_them_is_asked_for(capsys):
    long = " ".join(f"word{index}" for index in range(100))
    for full in (False, True):
        TreeOutput(["p"], full).finish([make_tree(long, "best")], {})
        shown = capsys.readouterr().out
        assert ("word50" in shown) == full
        assert "word0" in shown and "word99" in shown


def test_json_is_one_document(capsys):
    view = JsonOutput()
    view.on_token(event("one"))
    view.on_status(Status(phase="prefill", message="reading"))
    view.finish([make_tree("one \u2028北")], {"model": "m"})
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert document["model"] == "m"
    assert document["results"][0]["branches"][0]["text"] == "one \u2028北"
    stats = document["results"][0]["stats"]
    assert stats["kv_bytes_read"] == 25
    assert stats["kv_bytes_read_per_sequence"] == 100
    assert output.out.isascii()
    assert output.err == "deft-jax: reading\n"


def test_progress_is_a_line_per_phase(capsys):
    view = TreeOutput(["p"])
    for done in range(1, 4):
        view.on_load(done, 3)
    for phase in ("compile", "prefill", "decode", "decode", "decode", "done"):
        message = "" if phase == "decode" else f"{phase} now"
        view.on_status(Status(phase=phase, message=message))
    assert capsys.readouterr().err.splitlines() == [
        "deft-jax: loaded 3 tensors",
        "deft-jax: compile now",
        "deft-jax: prefill now",
        "deft-jax: 0 tokens · 0.0 tokens/s · 0.0 s · KV pages 0/0 · "
        "KV read 0 B, one sequence at a time 0 B, 0% saved",
    ]


def test_every_message_about_compiling_is_a_line(capsys):
    view = TreeOutput(["p"])
    for message in ("preparing a", "preparing a", "compiled a", "preparing b"):
        view.on_status(Status(phase="compile", message=message))
    assert capsys.readouterr().err.splitlines() == [
        "deft-jax: preparing a",
        "deft-jax: compiled a",
        "deft-jax: preparing b",
    ]


@pytest.mark.parametrize(
    ("tree", "paths", "expected"),
    [
        (250, 999, "250 B, one sequence at a time 999 B, 75% saved"),
        (999.7, 4e3, "1 kB, one sequence at a time 4 kB, 75% saved"),
        (31e6, 123.9e9, "31 MB, one sequence at a time 124 GB, 100% saved"),
        (12.4e12, 59.96e12, "12.4 TB, one sequence at a time 60 TB, 79% saved"),
        (2e15, 2e15, "2 PB, one sequence at a time 2 PB, 0% saved"),
    ],
)
def test_summary_shows_the_bytes_of_kv(tree, paths, expected):
    status = Status(
        phase="done",
        kv_tokens_read=tree,
        kv_tokens_read_per_sequence=paths,
        kv_bytes_read=tree,
        kv_bytes_read_per_sequence=paths,
    )
    assert counters(status).endswith(f"KV read {expected}")
