import pytest

from deft_jax.cli.growing_tree import GrowingTree
from deft_jax.results.tree_node import TokenEvent


def grow(tree, node, *logprobs, parent=0, text="x", reason=None):
    for count, logprob in enumerate(logprobs, 1):
        tree.add(
            TokenEvent(
                request=0,
                node=node,
                parent=parent,
                token=1,
                text=text,
                logprob=logprob,
                finish_reason=reason if count == len(logprobs) else None,
            )
        )


def test_tokens_add_up_along_the_path():
    tree = GrowingTree()
    grow(tree, 1, -1.0, -1.0, text="a")
    grow(tree, 2, -4.0, parent=1, text="b", reason="stop")
    assert tree.branches[1].text == "aa"
    assert tree.branches[2].path_tokens == 3
    assert tree.branches[2].mean_logprob == -2.0
    assert tree.branches[2].finish_reason == "stop"


def test_long_text_keeps_its_end():
    tree = GrowingTree()
    grow(tree, 1, *[-1.0] * 3000, text="word ")
    grow(tree, 1, -1.0, text="end")
    assert len(tree.branches[1].text) < 5000
    assert tree.branches[1].text.endswith("word end")


def test_child_may_come_before_its_parent():
    tree = GrowingTree()
    grow(tree, 5, -1.0, parent=3)
    rows, hidden = tree.rows(9, 30)
    assert [row.ids for row in rows] == [(3, 5)]
    assert hidden == 0


def test_growing_leaves_are_shown_first_then_the_best():
    tree = GrowingTree()
    grow(tree, 1, -3.0, reason="stop")
    grow(tree, 2, -1.0, reason="length")
    grow(tree, 3, -9.0)
    grow(tree, 4, -9.0)
    shown = [[row.id for row in tree.rows(limit, 30)[0]] for limit in (1, 2, 3, 4)]
    assert shown == [[3], [3, 4], [2, 3, 4], [1, 2, 3, 4]]
    assert tree.rows(1, 30)[1] == 3


def test_leaf_is_shown_with_what_is_above_it():
    tree = GrowingTree()
    grow(tree, 1, -1.0)
    grow(tree, 2, -1.0, parent=1)
    grow(tree, 3, -1.0, parent=1)
    rows, hidden = tree.rows(2, 30)
    assert [row.id for row in rows] == [1, 2]
    assert hidden == 1


@pytest.mark.parametrize("reasons", [(None, None), ("stop", None), ("stop", "length")])
def test_tree_is_finished_with_its_last_leaf(reasons):
    tree = GrowingTree()
    assert not tree.is_finished()
    for node, reason in enumerate(reasons, 1):
        grow(tree, node, -1.0, reason=reason)
    assert tree.is_finished() == (None not in reasons)
