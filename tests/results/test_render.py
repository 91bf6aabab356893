import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.outline import merge_chains, outline
from deft_jax.results.terminal_text import (
    excerpt,
    head,
    one_line,
    printable,
    tail,
    wrap,
)
from deft_jax.results.tree_node import TreeNode

ANY_TEXT = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from(" \n\t\r\x1b\u202e\u200d\ufe0f❤é́北京👨👩🏽"),
    ),
    max_size=200,
)


def make_tree(nodes, **fields):
    root = TreeNode(id=0, parent=None, tokens=(1,), text="p")
    return GenerationTree(
        request=0,
        prompt=fields.pop("prompt", "Why?"),
        nodes=(root, *nodes),
        stats=Status(phase="done"),
        **fields,
    )


def make_node(id, parent, text, **fields):
    return TreeNode(
        id=id, parent=parent, tokens=(1, 2), text=text, logprobs=(-0.5, -0.5), **fields
    )


def test_tree_is_drawn_with_guides():
    tree = make_tree(
        [
            make_node(1, 0, "one"),
            make_node(2, 0, "two", finish_reason="stop"),
            make_node(3, 1, "one and a half", finish_reason="length"),
            make_node(4, 1, "one\nand more", finish_reason="stop"),
        ]
    )
    assert tree.render(width=60).splitlines() == [
        "Why?",
        "├─ 1 · 2 tokens · mean log-prob -0.50",
        "│  │  one",
        "│  ├─ 3 · 2 tokens · mean log-prob -0.50 · length",
        "│  │     one and a half",
        "│  └─ 4 · 2 tokens · mean log-prob -0.50 · stop",
        "│        one ↵ and more",
        "└─ 2 · 2 tokens · mean log-prob -0.50 · stop · best",
        "      two",
    ]


def test_answer_and_votes_come_last():
    tree = make_tree(
        [
            make_node(1, 0, "It is 4", answer="4", finish_reason="stop"),
            make_node(2, 0, "It is 5", answer="5", finish_reason="stop"),
        ],
        answer="4",
        votes={"5": 1, "4": 2},
        notice="the pool was full",
    )
    assert tree.render().splitlines()[-3:] == [
        "notice: the pool was full",
        "answer: 4 (2 of 3 votes)",
        "votes: 4 2, 5 1",
    ]


def test_single_children_are_one_entry():
    chain = [make_node(i, i - 1, f"{i} ") for i in range(1, 2000)]
    assert make_tree(chain).render(max_text=None).count("├") == 0
    assert "1999 · 3998 tokens" in make_tree(chain).render()


def test_deep_trees_stay_within_the_width():
    nodes = []
    for depth in range(300):
        parent = 2 * depth - 1 if depth else 0
        nodes += [
            make_node(2 * depth + 1, parent, "on"),
            make_node(2 * depth + 2, parent, "off"),
        ]
    lines = make_tree(nodes).render(width=60).splitlines()
    assert max(map(cell_len, lines)) <= 60
    assert any(line.startswith("…") for line in lines)


def test_prompt_alone_can_be_drawn():
    assert make_tree([]).render() == "Why?"


def test_long_text_keeps_its_end():
    tree = make_tree([make_node(1, 0, "word " * 500 + "the answer is 42")])
    assert "the answer is 42" in tree.render(max_text=120)
    assert len(tree.render(max_text=120)) < 300
    assert tree.render(max_text=None).count("word") == 500


@given(ANY_TEXT, st.integers(24, 120))
def test_any_text_stays_within_the_width_and_harmless(text, width):
    tree = make_tree([make_node(1, 0, text, answer=text)], prompt=text, notice=text)
    for line in tree.render(width=width, max_text=80).split("\n"):
        assert cell_len(line) <= width
        assert printable(line) == line and "\t" not in line


@given(ANY_TEXT, st.integers(2, 40))
def test_cuts_fit(text, width):
    line = one_line(text)
    for cut in (head(line, width), tail(line, width), excerpt(line, max(width, 6))):
        assert cell_len(cut) <= max(width, 6)
    assert all(cell_len(piece) <= width for piece in wrap(line, width))


def test_controls_become_escapes():
    assert printable("a\x1b[2J\u202eb\r\n\tc\x9b") == "a\\x1b[2J\\u202eb\n\tc\\x9b"
    assert one_line("a\n\n  b\tc\x07") == "a ↵ b    c\\x07"
    assert printable("\ud800") == "\\ud800"


@pytest.mark.parametrize(
    ("parents", "chains"),
    [
        ({0: None}, {}),
        ({0: None, 1: 0}, {(1,): 0}),
        ({0: None, 1: 0, 2: 1, 3: 2, 4: 2}, {(1, 2): 0, (3,): 2, (4,): 2}),
        ({0: None, 1: 0, 2: 0, 3: 1, 4: 2}, {(1, 3): 0, (2, 4): 0}),
    ],
)
def test_chains(parents, chains):
    assert merge_chains(parents) == chains


def test_rows_come_depth_first():
    rows = outline({(1,): 0, (2,): 0, (3,): 1, (4,): 1}, max_guide=30)
    assert [row.id for row in rows] == [1, 3, 4, 2]
    assert [row.guide for row in rows] == ["├─ ", "│  ├─ ", "│  └─ ", "└─ "]
    assert [row.hanging for row in rows][-1] == "      "
