"""The host's record of one tree: text of branches, stop strings, drafts."""

import pytest

from deft_jax.engine.host_tree import Record
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


def new_record(*stop, prompt=(7, 8)):
    return Record(3, list(prompt), "the prompt", PieceTokenizer(), stop)


def grow(record, node, *tokens, reason=None):
    """Add tokens of log-probability -1; the last one carries the reason."""
    events = [record.grow(node, token, -1.0, None) for token in tokens[:-1]]
    return [*events, record.grow(node, tokens[-1], -1.0, reason)]


def text(record, node):
    return record.branches[node].text


def test_the_first_node_is_the_prompt():
    (root,) = new_record().nodes()
    assert (root.id, root.parent, root.tokens) == (ROOT, None, (7, 8))
    assert (root.text, root.logprobs, root.finish_reason) == ("the prompt", (), None)


def test_events_carry_the_text_that_is_certain():
    record = new_record("bcd")
    node = record.branch(ROOT)
    events = grow(record, node, AB, C, EURO_1, EURO_2, EOS[0], reason="stop")
    assert [event.text for event in events] == ["a", "", "", "bc€", ""]
    assert [event.finish_reason for event in events] == [None] * 4 + ["stop"]
    assert {(event.request, event.node, event.parent) for event in events} == {
        (3, node, ROOT)
    }
    assert [event.logprob for event in events] == [-1.0] * 5
    assert record.nodes()[1].text == "abc€"


def test_branches_continue_half_a_code_point_and_half_a_stop_string():
    record = new_record("cd")
    trunk = record.branch(ROOT)
    grow(record, trunk, AB, C)
    stopped, goes_on = record.branch(trunk), record.branch(trunk)
    grow(record, stopped, D)
    grow(record, goes_on, EURO_1)
    halves = [record.branch(goes_on) for _ in range(2)]
    grow(record, halves[0], EURO_2)
    grow(record, halves[1], D, reason="length")
    assert (text(record, trunk), text(record, stopped)) == ("ab", "")
    assert record.branches[stopped].finish_reason == "stop"
    assert text(record, goes_on) == ""
    assert text(record, halves[0]) == "c€"
    assert text(record, halves[1]) == "c\N{REPLACEMENT CHARACTER}d"


def test_a_stop_string_ends_the_branch_whatever_the_device_says():
    record = new_record("€ E")
    node = record.branch(ROOT)
    events = grow(record, node, D, EURO_1, EURO_2, END, C, reason="length")
    assert [event and event.text for event in events] == ["d", "", "", "", None]
    assert events[3].finish_reason == "stop"
    assert record.has_ended(node)
    leaf = record.nodes()[1]
    assert (leaf.text, leaf.tokens) == ("d", (D, EURO_1, EURO_2, END))
    assert leaf.finish_reason == "stop"


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_text_held_back_is_released_when_the_branch_ends(reason):
    record = new_record("cab")
    node = record.branch(ROOT)
    events = grow(record, node, D, C, EURO_1, reason=reason)
    texts = [event.text for event in events if event]
    assert texts == ["d", "", "c\N{REPLACEMENT CHARACTER}"]
    assert [event.finish_reason for event in events if event] == [None, None, reason]


def test_close_ends_open_leaves_and_shows_their_text():
    record = new_record("cab")
    trunk, ended = record.branch(ROOT), record.branch(ROOT)
    grow(record, trunk, AB)
    grow(record, ended, D, reason="length")
    leaf = record.branch(trunk)
    grow(record, leaf, C)
    record.close("interrupted")
    record.close("pruned")
    assert [node.finish_reason for node in record.nodes()] == [
        None,
        None,
        "length",
        "interrupted",
    ]
    assert [node.text for node in record.nodes()[1:]] == ["ab", "d", "c"]


def test_close_leaves_a_lone_prompt_open():
    record = new_record()
    record.close("interrupted")
    assert [node.finish_reason for node in record.nodes()] == [None]


def draft_chain(record, parent, *tokens):
    """Add a draft per token, each below the one before; return their ids."""
    ids = []
    for token in tokens:
        parent = record.branch(parent, draft=True)
        assert record.grow(parent, token, -2.0, None) is None
        ids.append(parent)
    return ids


def test_accepted_drafts_become_tokens_of_their_trunk():
    record = new_record()
    trunk = record.branch(ROOT)
    grow(record, trunk, AB)
    right = draft_chain(record, trunk, C, D, END)
    draft_chain(record, trunk, EURO_1)
    events = record.accept(right[1])
    assert [(event.node, event.token, event.text) for event in events] == [
        (trunk, C, "c"),
        (trunk, D, "d"),
    ]
    assert [node.id for node in record.nodes()] == [ROOT, trunk]
    assert record.nodes()[1].tokens == (AB, C, D)
    assert record.nodes()[1].logprobs == (-1.0, -2.0, -2.0)


def test_accepting_the_trunk_drops_its_drafts_and_no_others():
    record = new_record()
    trunk, other = record.branch(ROOT), record.branch(ROOT)
    draft_chain(record, trunk, C, D)
    (kept,) = draft_chain(record, other, C)
    assert record.accept(trunk) == []
    assert set(record.branches) == {ROOT, trunk, other, kept}


def test_a_stop_string_in_accepted_drafts_ends_the_trunk():
    record = new_record("bc")
    trunk = record.branch(ROOT)
    grow(record, trunk, AB)
    drafts = draft_chain(record, trunk, C, D)
    events = record.accept(drafts[1])
    assert [event.finish_reason for event in events] == ["stop"]
    assert (text(record, trunk), record.branches[trunk].tokens) == ("a", [AB, C])


def test_close_forgets_drafts_that_were_not_judged():
    record = new_record()
    trunk = record.branch(ROOT)
    grow(record, trunk, AB)
    draft_chain(record, trunk, C, D)
    record.close("interrupted")
    assert [node.id for node in record.nodes()] == [ROOT, trunk]
    assert record.nodes()[1].finish_reason == "interrupted"


def test_a_special_token_as_a_stop_string_ends_the_branch():
    class Special(PieceTokenizer):
        special_tokens = {"<|end|>": EOS[1]}

    record = Record(0, [7], "", Special(), ("<|end|>",))
    child = record.branch(ROOT)
    assert grow(record, child, AB, EOS[1])[-1].finish_reason == "stop"
    assert text(record, child) == "ab"
    assert record.grow(child, AB, -1.0, None) is None
