import io
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from deft_jax.cli.growing_tree import GrowingTree
from deft_jax.cli.live_layout import Activity, screen_lines, share
from deft_jax.cli.live_view import LiveView
from deft_jax.cli.view import stopping
from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.render import plain
from deft_jax.results.tree_node import TokenEvent, TreeNode

DECODING = Status(
    phase="decode",
    generated_tokens=12,
    tokens_per_s=34.56,
    live_branches=3,
    pages_used=2,
    pages_total=8,
    kv_tokens_read=1,
    kv_tokens_read_per_sequence=4,
)


def event(node, text, request=0, reason=None):
    return TokenEvent(
        request=request,
        node=node,
        parent=0,
        token=1,
        text=text,
        logprob=-0.5,
        finish_reason=reason,
    )


def forest(num_trees, num_branches, text="some words "):
    trees = [GrowingTree() for _ in range(num_trees)]
    for tree in trees:
        for node in range(1, num_branches + 1):
            for _ in range(20):
                tree.add(event(node, text))
    return trees


def screen(trees, size, now=0.0, **fields):
    fields = {"status": DECODING, **fields}
    activity = Activity("model", started_at=0.0, since=0.0, **fields)
    prompts = [f"prompt {index}" for index in range(len(trees))]
    return [plain(line) for line in screen_lines(activity, prompts, trees, size, now)]


def test_header_shows_the_counters():
    lines = screen(forest(1, 3), (100, 24))
    assert lines[1].endswith(
        "12 tokens · 34.6 tokens/s · 3 live · KV pages 2/8 · KV reads saved 75%"
    )


def test_header_shows_the_loading():
    lines = screen([GrowingTree()], (80, 24), status=None, tensors=(60, 120))
    assert lines[1].endswith("loading the model " + "━" * 24 + " 60/120 tensors")


def test_header_shows_how_long_it_compiles():
    status = Status(phase="compile", message="compiling the decode step")
    lines = screen([GrowingTree()], (80, 24), status=status, now=12.3)
    assert lines[1][2:] == "compiling the decode step (12 s)"


def test_clock_of_a_phase_restarts_with_its_message():
    activity = Activity("model", started_at=0.0, since=0.0)
    for now, status in enumerate([Status(phase="compile", message="a")] * 3, 1):
        activity.update(status, now)
    assert activity.since == 1
    activity.update(Status(phase="compile", message="b"), 9.0)
    assert activity.since == 9.0


def test_header_shows_the_prefill():
    status = Status(phase="prefill", prompt_tokens_done=1, prompt_tokens_total=4)
    lines = screen([GrowingTree()], (80, 24), status=status)
    assert lines[1].endswith(" 1/4 tokens")


def test_header_shows_the_interrupt():
    lines = screen(forest(1, 1), (80, 24), stopping=stopping(signal.SIGINT))
    assert "press Ctrl-C again" in lines[1]
    lines = screen(forest(1, 1), (80, 24), stopping=stopping(signal.SIGTERM))
    assert lines[1].endswith("stopping; a second signal aborts")


def test_few_branches_share_the_screen():
    lines = screen(forest(1, 2, "some words " * 9), (60, 13))
    assert [line[:4] for line in lines[2:]] == (
        ["prom", "├─ 1"] + ["│   "] * 4 + ["└─ 2"] + ["    "] * 4
    )


def test_short_texts_leave_their_lines_to_long_ones():
    (tree,) = forest(1, 3, "")
    tree.add(event(2, "some words " * 30))
    tree.add(event(1, "one line"))
    lines = screen([tree], (40, 14))
    assert len(lines) == 14
    assert [line[:4] for line in lines[2:]] == (
        ["prom", "├─ 1", "│   ", "├─ 2"] + ["│   "] * 7 + ["└─ 3"]
    )


@pytest.mark.parametrize("branches", [7, 8, 9, 13, 16])
def test_no_line_stays_empty_while_text_is_hidden(branches):
    lines = screen(forest(1, branches, "some words " * 9), (80, 23))
    assert len(lines) == 23


def test_second_lines_continue_the_first():
    (tree,) = forest(1, 3, "")
    text = " ".join(f"w{index}" for index in range(60))
    for node in (1, 2, 3):
        tree.add(event(node, text))
    lines = screen([tree], (40, 8))
    assert len(lines) == 8
    assert [line[:3] for line in lines[3:]] == ["├─ ", "│  ", "├─ ", "│  ", "└─ "]
    first, second = lines[3].split("▸ …")[1].split(), lines[4][1:].split()
    shown = first + second
    assert shown[1:] == [f"w{i}" for i in range(60)][-len(shown) + 1 :]
    assert lines[7].endswith(" w59")


def test_lines_that_cannot_be_shared_evenly_are_used():
    lines = screen(forest(2, 2, "some words " * 9), (60, 21))
    assert len(lines) == 21


@given(st.integers(0, 40), st.lists(st.integers(0, 9), max_size=12))
def test_shares_are_even_and_no_more_than_wanted(room, wanted):
    given = share(room, wanted)
    assert sum(given) == min(room, sum(wanted))
    for one, most in zip(given, wanted, strict=True):
        assert one <= most
        assert one == most or one >= max(given) - 1


def test_many_branches_have_a_line_each():
    lines = screen(forest(1, 9, "abc "), (60, 12))
    assert len(lines) == 12
    assert lines[3].startswith("├─   1   20 tok  -0.50 ▸ …")
    assert lines[3].endswith(" abc abc")


def test_too_many_branches_are_counted():
    lines = screen(forest(1, 64), (60, 20))
    assert len(lines) == 20
    assert lines[-1] == "… and 48 more branches"


def test_too_many_prompts_are_counted():
    lines = screen(forest(30, 2), (60, 20))
    assert len(lines) <= 20
    assert lines[-1] == "… and 25 more prompts"


@given(
    st.text(st.sampled_from("ab \n\x1b[]/北👨❤\u200d\ufe0f́"), max_size=60),
    st.integers(1, 3),
    st.integers(0, 9),
    st.integers(10, 70),
    st.integers(1, 30),
)
def test_screen_is_never_left(text, num_trees, num_branches, width, height):
    lines = screen(forest(num_trees, num_branches, text), (width, height))
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    assert "\x1b" not in "".join(lines)


@pytest.fixture
def console():
    return Console(
        file=io.StringIO(), force_terminal=True, width=80, height=24, color_system=None
    )


def finished_tree(texts):
    root = TreeNode(id=0, parent=None, tokens=(1,), text="p")
    leaves = [
        TreeNode(
            id=index,
            parent=0,
            tokens=(1,),
            text=text,
            logprobs=(-1.0 / index,),
            finish_reason="stop",
        )
        for index, text in enumerate(texts, 1)
    ]
    return GenerationTree(
        request=0, prompt="p", nodes=(root, *leaves), stats=Status(phase="done")
    )


def test_view_draws_and_leaves_the_outcome(console):
    view = LiveView("model", ["[b]prompt[/b]"], console)
    with view:
        view.on_load(1, 2)
        view.on_status(DECODING)
        view.on_token(event(1, "[red]one"))
        console.file.truncate(0)
    view.finish([finished_tree(["[red]one\x07", "two\n  [/nothing]"])], {})
    output = console.file.getvalue()
    assert "[b]prompt[/b]" in output
    assert "[red]one\\x07" in output
    assert "two\n  [/nothing]\n" in output


def test_full_texts_are_left_when_they_are_asked_for(console):
    text = " ".join(f"word{index}" for index in range(100))
    LiveView("model", ["p"], console).finish([finished_tree([text, "b"])], {})
    assert "word50" not in console.file.getvalue().split("best branch")[0]
    LiveView("model", ["p"], console, full=True).finish(
        [finished_tree([text, "b"])], {}
    )
    assert "word50" in console.file.getvalue().split("word99")[-2]


def test_single_branch_is_left_as_its_text(console):
    text = "a " * 90 + "end"
    LiveView("model", ["prompt"], console).finish([finished_tree([text])], {})
    assert console.file.getvalue().startswith(text + "\n")
