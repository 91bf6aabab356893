"""The host's tree of one request: text of branches, stop strings, drafts."""

import pytest

from deft_jax.engine.host_tree import HostTree
from deft_jax.models.tokenizers.detokenizer import Detokenizer
from deft_jax.results.tree_node import ROOT
from tests.support.tiny_model import EOS


class PieceTokenizer:
    """Tokens are whole pieces of bytes, so that a code point may span several."""

    eos_token_ids = EOS
    pieces = {10: b"ab", 11: b"c", 12: b"\xe2\x82", 13: b"\xac", 14: b" END", 15: b"d"}

    def encode(self, text):
        raise NotImplementedError

    def decode(self, ids, *, skip_special_tokens):
        raise NotImplementedError

    def stream(self, context):
        return Detokenizer(lambda token: self.pieces[token], skipped=EOS)


AB, C, EURO_1, EURO_2, END, D = PieceTokenizer.pieces


def new_tree(*stop, prompt=(7, 8)):
    return HostTree(3, list(prompt), "the prompt", PieceTokenizer(), stop)


def grow(tree, node, *tokens, reason=None):
    """Add tokens of log-probability -1; the last one carries the reason."""
    events = [tree.grow(node, token, -1.0, None) for token in tokens[:-1]]
    return [*events, tree.grow(node, tokens[-1], -1.0, reason)]


def text(tree, node):
    return tree.branches[node].text


def test_the_first_node_is_the_prompt():
    (root,) = new_tree().nodes()
    assert (root.id, root.parent, root.tokens) == (ROOT, None, (7, 8))
    assert (root.text, root.logprobs, root.finish_reason) == ("the prompt", (), None)


def test_events_carry_the_text_that_is_certain():
    tree = new_tree("bcd")
    node = tree.branch(ROOT)
    events = grow(tree, node, AB, C, EURO_1, EURO_2, EOS[0], reason="stop")
    assert [event.text for event in events] == ["a", "", "", "bc€", ""]
    assert [event.finish_reason for event in events] == [None] * 4 + ["stop"]
    assert {(event.request, event.node, event.parent) for event in events} == {
        (3, node, ROOT)
    }
    assert [event.logprob for event in events] == [-1.0] * 5
    assert tree.nodes()[1].text == "abc€"


def test_branches_continue_half_a_code_point_and_half_a_stop_string():
    tree = new_tree("cd")
    trunk = tree.branch(ROOT)
    grow(tree, trunk, AB, C)
    stopped, goes_on = tree.branch(trunk), tree.branch(trunk)
    grow(tree, stopped, D)
    grow(tree, goes_on, EURO_1)
    halves = [tree.branch(goes_on) for _ in range(2)]
    grow(tree, halves[0], EURO_2)
    grow(tree, halves[1], D, reason="length")
    assert (text(tree, trunk), text(tree, stopped)) == ("ab", "")
    assert tree.branches[stopped].finish_reason == "stop"
    assert text(tree, goes_on) == ""
    assert text(tree, halves[0]) == "c€"
    assert text(tree, halves[1]) == "c\N{REPLACEMENT CHARACTER}d"


def test_a_stop_string_ends_the_branch_whatever_the_device_says():
    tree = new_tree("€ E")
    node = tree.branch(ROOT)
    events = grow(tree, node, D, EURO_1, EURO_2, END, C, reason="length")
    assert [event and event.text for event in events] == ["d", "", "", "", None]
    assert events[3].finish_reason == "stop"
    assert tree.has_ended(node)
    leaf = tree.nodes()[1]
    assert (leaf.text, leaf.tokens) == ("d", (D, EURO_1, EURO_2, END))
    assert leaf.finish_reason == "stop"


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_text_held_back_is_released_when_the_branch_ends(reason):
    tree = new_tree("cab")
    node = tree.branch(ROOT)
    events = grow(tree, node, D, C, EURO_1, reason=reason)
    texts = [event.text for event in events if event]
    assert texts == ["d", "", "c\N{REPLACEMENT CHARACTER}"]
    assert [event.finish_reason for event in events if event] == [None, None, reason]


def test_close_ends_open_leaves_and_shows_their_text():
    tree = new_tree("cab")
    trunk, ended = tree.branch(ROOT), tree.branch(ROOT)
    grow(tree, trunk, AB)
    grow(tree, ended, D, reason="length")
    leaf = tree.branch(trunk)
    grow(tree, leaf, C)
    tree.close("interrupted")
    tree.close("pruned")
    assert [node.finish_reason for node in tree.nodes()] == [
        None,
        None,
        "length",
        "interrupted",
    ]
    assert [node.text for node in tree.nodes()[1:]] == ["ab", "d", "c"]


def test_close_leaves_a_lone_prompt_open():
    tree = new_tree()
    tree.close("interrupted")
    assert [node.finish_reason for node in tree.nodes()] == [None]


def draft_chain(tree, parent, *tokens):
    """Add a draft per token, each below the one before; return their ids."""
    ids = []
    for token in tokens:
        parent = tree.branch(parent, draft=True)
        assert tree.grow(parent, token, -2.0, None) is None
        ids.append(parent)
    return ids


def test_accepted_drafts_become_tokens_of_their_trunk():
    tree = new_tree()
    trunk = tree.branch(ROOT)
    grow(tree, trunk, AB)
    right = draft_chain(tree, trunk, C, D, END)
    draft_chain(tree, trunk, EURO_1)
    events = tree.accept(right[1])
    assert [(event.node, event.token, event.text) for event in events] == [
        (trunk, C, "c"),
        (trunk, D, "d"),
    ]
    assert [node.id for node in tree.nodes()] == [ROOT, trunk]
    assert tree.nodes()[1].tokens == (AB, C, D)
    assert tree.nodes()[1].logprobs == (-1.0, -2.0, -2.0)


def test_accepting_the_trunk_drops_its_drafts_and_no_others():
    tree = new_tree()
    trunk, other = tree.branch(ROOT), tree.branch(ROOT)
    draft_chain(tree, trunk, C, D)
    (kept,) = draft_chain(tree, other, C)
    assert tree.accept(trunk) == []
    assert set(tree.branches) == {ROOT, trunk, other, kept}


def test_children_of_drafts_go_the_way_of_their_drafts():
    tree = new_tree()
    trunk = tree.branch(ROOT)
    first, tip, wrong = draft_chain(tree, trunk, C, D, C)
    kept, lost = tree.branch(tip), tree.branch(wrong)
    below = tree.branch(lost)
    tree.accept(tip)
    assert set(tree.branches) == {ROOT, trunk, kept}
    assert tree.branches[kept].parent == trunk
    assert not {first, wrong, lost, below} & set(tree.branches)
    other = tree.branch(trunk, draft=True)
    tree.accept(trunk)
    assert set(tree.branches) == {ROOT, trunk, kept} and other not in tree.branches


def test_a_stop_string_in_accepted_drafts_ends_the_trunk():
    tree = new_tree("bc")
    trunk = tree.branch(ROOT)
    grow(tree, trunk, AB)
    drafts = draft_chain(tree, trunk, C, D)
    events = tree.accept(drafts[1])
    assert [event.finish_reason for event in events] == ["stop"]
    assert (text(tree, trunk), tree.branches[trunk].tokens) == ("a", [AB, C])


def test_close_forgets_drafts_that_were_not_judged():
    tree = new_tree()
    trunk = tree.branch(ROOT)
    grow(tree, trunk, AB)
    draft_chain(tree, trunk, C, D)
    tree.close("interrupted")
    assert [node.id for node in tree.nodes()] == [ROOT, trunk]
    assert tree.nodes()[1].finish_reason == "interrupted"


def test_a_path_takes_no_more_tokens_than_its_limit():
    tree = HostTree(0, [7], "the prompt", PieceTokenizer(), ("cab",), limit=3)
    trunk = tree.branch(ROOT)
    grow(tree, trunk, AB, C)
    child = tree.branch(trunk)
    assert [e and e.token for e in grow(tree, child, D, C, D)] == [D, None, None]
    grow(tree, trunk, C, C)
    assert (tree.branches[child].tokens, text(tree, child)) == ([D], "cd")
    assert tree.branches[child].finish_reason == "length"
    assert tree.branches[trunk].tokens == [AB, C, C]


def test_accepted_drafts_are_held_to_the_limit():
    tree = HostTree(0, [7], "the prompt", PieceTokenizer(), (), limit=3)
    trunk = tree.branch(ROOT)
    grow(tree, trunk, AB)
    assert len(tree.accept(draft_chain(tree, trunk, C, D, END)[-1])) == 2
    assert tree.branches[trunk].tokens == [AB, C, D]
    assert tree.has_ended(trunk)


def test_a_request_that_fails_before_its_first_token_marks_the_prompt():
    tree = new_tree()
    tree.fail("not-finite")
    assert [node.finish_reason for node in tree.nodes()] == ["not-finite"]
    grown = new_tree()
    grow(grown, grown.branch(ROOT), AB)
    grown.fail("not-finite")
    assert [node.finish_reason for node in grown.nodes()] == [None, "not-finite"]


def test_a_special_token_as_a_stop_string_ends_the_branch():
    class Special(PieceTokenizer):
        special_tokens = {"<|end|>": EOS[1]}

    tree = HostTree(0, [7], "", Special(), ("<|end|>",))
    child = tree.branch(ROOT)
    event = grow(tree, child, AB, EOS[1])[-1]
    assert event is not None and event.finish_reason == "stop"
    assert text(tree, child) == "ab"
    assert tree.grow(child, AB, -1.0, None) is None
