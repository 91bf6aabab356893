import dataclasses
import json
import math
import sys

import networkx
import pytest

from deft_jax.errors import DeftError
from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TreeNode


def node(id, parent, text="", logprobs=(), **fields):
    tokens = tuple(range(len(logprobs)))
    return TreeNode(
        id=id, parent=parent, tokens=tokens, text=text, logprobs=logprobs, **fields
    )


@pytest.fixture
def tree():
    """Return a prompt with a branch that forks and a branch that does not.

    0 ── 1 ─┬─ 2    mean (-1 - 1 - 4) / 3 = -2
        │   └─ 3    mean (-1 - 1 - 1) / 3 = -1
        └─── 4      mean -0.5
    """
    nodes = (
        TreeNode(id=0, parent=None, tokens=(7, 8), text="Why?"),
        node(1, 0, "Be", (-1.0, -1.0)),
        node(2, 1, "fore", (-4.0,), finish_reason="stop", answer="a"),
        node(3, 1, "cause", (-1.0,), finish_reason="length", answer="a"),
        node(4, 0, "So", (-0.5,), finish_reason="stop", answer="b"),
    )
    return GenerationTree(
        request=0, prompt="Why?", nodes=nodes, stats=Status(phase="done")
    )


def with_fields(tree, **fields):
    return GenerationTree(**{**vars(tree), **fields})


def test_leaves_are_the_nodes_without_children(tree):
    assert [leaf.id for leaf in tree.leaves()] == [2, 3, 4]


def test_path_runs_from_the_root(tree):
    leaf = tree.nodes[3]
    assert [step.id for step in tree.path(leaf)] == [0, 1, 3]
    assert tree.path_text(leaf) == "Because"


def test_nodes_are_found_by_id_and_not_by_place(tree):
    kept = tuple(n for n in tree.nodes if n.id != 2)
    assert with_fields(tree, nodes=kept).path_text(kept[2]) == "Because"


def test_mean_logprob_weighs_every_token_of_the_path(tree):
    means = [tree.mean_logprob(leaf) for leaf in tree.leaves()]
    assert means == [-2.0, -1.0, -0.5]


def test_best_is_the_likeliest_leaf(tree):
    assert tree.best().id == 4


def test_best_has_the_best_score_where_a_strategy_gives_some(tree):
    scores = {3: 2.0, 4: -1.0}
    nodes = [
        dataclasses.replace(node, score=scores.get(node.id)) for node in tree.nodes
    ]
    scored = with_fields(tree, nodes=tuple(nodes))
    assert scored.best().id == 3
    branches = scored.to_dict()["branches"]
    assert {one["leaf"]: one["score"] for one in branches if one["score"]} == scores


def test_best_gave_the_answer_that_won(tree):
    assert with_fields(tree, answer="a", votes={"a": 2, "b": 1}).best().id == 3


def test_best_is_not_pruned_unless_all_are(tree):
    nodes = [vars(n) for n in tree.nodes]
    nodes[4]["finish_reason"] = "pruned"
    pruned = with_fields(tree, nodes=tuple(TreeNode(**n) for n in nodes))
    assert pruned.best().id == 3
    for fields in nodes[2:]:
        fields["finish_reason"] = "pruned"
    pruned = with_fields(tree, nodes=tuple(TreeNode(**n) for n in nodes))
    assert pruned.best().id == 4


def test_prompt_alone_is_its_own_best_leaf(tree):
    lone = with_fields(tree, nodes=tree.nodes[:1])
    assert lone.best().id == 0
    assert lone.path_text(lone.best()) == ""
    assert lone.mean_logprob(lone.best()) == -math.inf
    assert lone.to_dict()["branches"][0]["mean_logprob"] is None


def test_dict_survives_json_and_holds_everything(tree):
    content = tree.to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert [n["id"] for n in content["nodes"]] == [0, 1, 2, 3, 4]
    assert content["nodes"][0]["tokens"] == [7, 8]
    assert content["branches"][1] == {
        "leaf": 3,
        "text": "Because",
        "mean_logprob": -1.0,
        "finish_reason": "length",
        "answer": "a",
        "score": None,
    }
    assert set(content) == {
        "request",
        "prompt",
        "best",
        "answer",
        "agreement",
        "votes",
        "notice",
        "prefill_s",
        "decode_s",
        "branches",
        "nodes",
        "stats",
    }


def test_status_counts_the_reads_that_were_saved():
    status = Status(phase="done", kv_tokens_read=25, kv_tokens_read_per_sequence=100)
    assert status.kv_read_saved == 0.75
    assert status.to_dict()["kv_read_saved"] == 0.75
    assert {"kv_bytes_read", "kv_bytes_read_per_sequence"} < set(status.to_dict())
    assert Status(phase="compile").kv_read_saved == 0.0


def test_networkx_graph_has_the_edges_and_the_fields(tree):
    graph = tree.to_networkx()
    assert networkx.is_arborescence(graph)
    assert set(graph.edges) == {(0, 1), (1, 2), (1, 3), (0, 4)}
    assert graph.nodes[3]["text"] == "cause"
    assert graph.nodes[3]["mean_logprob"] == -1.0
    assert graph.graph["best"] == 4


def test_missing_networkx_is_named(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(DeftError, match="pip install networkx"):
        tree.to_networkx()
