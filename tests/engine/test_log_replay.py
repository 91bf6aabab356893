"""The replay of logged steps: which result node each device node stands for."""

import dataclasses
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from deft_jax.engine.host_tree import HostTree
from deft_jax.engine.log_replay import LogReplay
from deft_jax.errors import DeftError
from deft_jax.results.tree_node import ROOT
from deft_jax.runtime.state import StepLog
from deft_jax.runtime.top_log import TopLog
from deft_jax.strategies.protocol import LENGTH, STOP
from deft_jax.tree.state import NO_NODE
from tests.support.tiny_model import AsciiTokenizer

NODES, ROWS = 10, 3
DEVICE_ROOT = 4


def row(source, node, text, **fields):
    """Return what the log says of one row in one step."""
    return {"source": source, "node": node, "token": ord(text), **fields}


class Burst(NamedTuple):
    """Logged steps, and their likely tokens."""

    log: Any
    steps: int
    tops: Any = None

    def __or__(self, tops):
        """Return the steps with likely tokens."""
        return self._replace(tops=tops)


def play(replay, burst):
    """Play a burst; return the events."""
    return [told.event for told in replay.play(*burst)]


IDLE = row(NO_NODE, NODES, "?")


def burst(*steps):
    """Return logged steps; each gives its rows in order and its values by name."""
    fields = [field.name for field in dataclasses.fields(StepLog)]
    defaults = {"accept": NO_NODE, "left_out": NO_NODE, "branch": False, "draft": False}
    log = {name: [] for name in fields}
    for rows in steps:
        rows = [*rows, *[IDLE] * (ROWS - len(rows))]
        for name in fields:
            default = defaults.get(name, 0)
            log[name].append([entry.get(name, default) for entry in rows])
    arrays = {name: np.array(values) for name, values in log.items()}
    return Burst(SimpleNamespace(**arrays), len(steps))


def likely(*steps):
    """Return the log of likely tokens; per step the first token behind each node."""
    node = np.full((len(steps), ROWS), NODES)
    token = np.zeros((len(steps), ROWS, 2), int)
    for step, rows in enumerate(steps):
        for index, (at, text) in enumerate(rows.items()):
            node[step, index], token[step, index] = at, [ord(text), ord("!")]
    logprob = np.broadcast_to([-0.25, -2.0], token.shape)
    return TopLog(node=node, token=token, logprob=logprob)


def likeliest(tree):
    """Return the first likely token of each place, by node."""
    return {
        node.id: "".join(chr(top[0][0]) if top else "?" for top in node.top_logprobs)
        for node in tree.nodes()[1:]
    }


def start(*stop, num_top=0):
    """Return a tree and a replay that knows its prompt."""
    tree = HostTree(0, [1, 2], "prompt", AsciiTokenizer(), stop, num_top=num_top)
    replay = LogReplay(NODES, 128)
    replay.start(DEVICE_ROOT, tree)
    return tree, replay


def texts(tree):
    return {node.id: node.text for node in tree.nodes()[1:]}


def fork(*places):
    """Return a step whose fresh rows branch from the prompt; (node, text) each."""
    return [row(DEVICE_ROOT, node, text, branch=True) for node, text in places]


def test_rows_branch_grow_in_place_and_idle():
    tree, replay = start()
    events = play(
        replay,
        burst(
            fork((7, "a"), (2, "b")),
            [row(7, 7, "c"), row(2, 2, "d")],
            [IDLE, row(2, 2, "e", logprob=-0.5)],
        ),
    )
    assert texts(tree) == {1: "ac", 2: "bde"}
    assert [(event.node, event.text) for event in events] == [
        (1, "a"),
        (2, "b"),
        (1, "c"),
        (2, "d"),
        (2, "e"),
    ]
    assert events[-1].logprob == -0.5 and events[0].parent == ROOT


def test_only_the_steps_that_ran_are_replayed():
    tree, replay = start()
    steps = burst(fork((7, "a")), [row(7, 7, "b")])
    play(replay, steps._replace(steps=1))
    assert texts(tree) == {1: "a"}


def test_the_last_token_of_a_row_is_recorded_though_it_is_not_fed():
    tree, replay = start()
    events = play(
        replay,
        burst(
            fork((7, "a"), (2, "b")),
            [row(7, NODES, "c", finish=STOP), row(2, NODES, "d", finish=LENGTH)],
        ),
    )
    assert [event.finish_reason for event in events] == [None, None, "stop", "length"]
    assert texts(tree) == {1: "ac", 2: "bd"}


def test_a_device_node_stands_for_another_branch_once_it_is_used_again():
    """Row 0 branches from node 7 into nodes 2 and 7, the latter used again at once."""
    tree, replay = start()
    play(
        replay,
        burst(
            fork((7, "a"), (2, "b")),
            [row(7, 3, "c", branch=True), row(7, 2, "d", branch=True)],
            [row(3, 3, "e"), row(2, 7, "f", branch=True)],
            [row(3, 3, "g"), row(7, 7, "h")],
        ),
    )
    nodes = {node.id: (node.parent, node.text) for node in tree.nodes()[1:]}
    assert nodes == {1: (0, "a"), 2: (0, "b"), 3: (1, "ceg"), 4: (1, "d"), 5: (4, "fh")}


def test_rows_of_several_trees_do_not_mix():
    tree, replay = start()
    other = HostTree(1, [3], "other", AsciiTokenizer(), ())
    replay.start(9, other)
    play(replay, burst([*fork((7, "a")), row(9, 2, "b", branch=True)]))
    play(replay, burst([row(7, 7, "c"), row(2, 2, "d")]))
    assert (texts(tree), texts(other)) == ({1: "ac"}, {1: "bd"})


def dropped(replay):
    return np.flatnonzero(replay.take_dropped()).tolist()


def test_a_stop_string_has_the_device_node_cut_once():
    tree, replay = start("xy")
    assert not replay.has_dropped
    steps = [fork((7, "x"), (2, "b")), [row(7, 7, "y"), row(2, 2, "c")]]
    play(replay, burst(*steps, [row(7, 7, "z"), row(2, 2, "d")]))
    assert texts(tree) == {1: "", 2: "bcd"}
    assert tree.branches[1].finish_reason == "stop"
    assert replay.has_dropped
    assert dropped(replay) == [7] and not replay.has_dropped
    assert dropped(replay) == []


@pytest.mark.parametrize("by", ["prompt", "branch"])
def test_a_node_that_was_to_be_cut_is_not_once_it_is_used_again(by):
    """The device freed it first: its row came to the end of the text or was pruned."""
    tree, replay = start("xy")
    steps = [fork((7, "x"), (2, "b")), [row(7, 7, "y"), row(2, 2, "c")]]
    gone = [row(7, NODES, "!", finish=STOP), row(2, 2, "d")]
    if by == "prompt":
        play(replay, burst(*steps, gone))
        replay.start(7, HostTree(1, [3], "other", AsciiTokenizer(), ("xy",)))
    else:
        play(replay, burst(*steps, gone, [IDLE, row(2, 7, "e", branch=True)]))
    assert dropped(replay) == []


def test_nothing_grows_from_a_branch_that_a_stop_string_ended():
    """The device did not know yet; what it branched is cut with what it continued."""
    tree, replay = start("xy")
    events = play(
        replay,
        burst(
            fork((7, "x")),
            [row(7, 7, "y")],
            [row(7, 3, "a", branch=True), row(7, 5, "b", branch=True)],
            [row(3, 3, "c"), row(5, 6, "d", branch=True)],
        ),
    )
    assert [node.id for node in tree.nodes()] == [ROOT, 1]
    assert len(events) == 2
    assert set(dropped(replay)) >= {3, 5, 6, 7}


def draft(source, node, text):
    return row(source, node, text, branch=True, draft=True)


def test_accepted_drafts_are_events_of_the_trunk_with_their_logprobs():
    """The drafts' log-probabilities are known one step after their tokens."""
    tree, replay = start()
    told = play(replay, burst([*fork((7, "a")), draft(NODES, 2, "b")]))
    told += play(
        replay,
        burst(
            [
                row(7, 7, "c", accept=2),
                draft(NODES, 2, "d") | {"draft_logprob": -0.25},
                draft(NODES, 3, "e"),
            ],
            [row(7, 7, "f", accept=7)],
        ),
    )
    assert [(event.node, event.text, event.logprob) for event in told] == [
        (1, "a", 0),
        (1, "b", -0.25),
        (1, "c", 0),
        (1, "f", 0),
    ]
    assert texts(tree) == {1: "abcf"}


def test_drafts_continue_rows_of_the_same_step():
    tree, replay = start()
    play(
        replay, burst([*fork((7, "a")), draft(NODES, 2, "b"), draft(NODES + 1, 3, "c")])
    )
    play(replay, burst([row(7, 7, "d", accept=3)]))
    assert texts(tree) == {1: "abcd"}


def test_a_stop_string_in_drafts_cuts_the_trunk_once_they_are_accepted():
    tree, replay = start("bc")
    play(
        replay, burst([*fork((7, "a")), draft(NODES, 2, "b"), draft(NODES + 1, 3, "c")])
    )
    assert not replay.has_dropped
    play(replay, burst([row(7, 7, "d", accept=3)]))
    assert texts(tree) == {1: "a"}
    assert dropped(replay) == [7]


def test_a_request_that_has_ended_is_not_continued():
    tree, replay = start()
    play(replay, burst(fork((7, "a"))))
    tree.close("pruned")
    replay.forget(tree)
    with pytest.raises(DeftError, match="continue 7 of 10 nodes, which holds no token"):
        play(replay, burst([row(7, 7, "b")]))
    assert texts(tree) == {1: "a"}


def test_accepting_what_is_not_there_is_nothing():
    tree, replay = start()
    play(replay, burst([*fork((7, "a")), draft(NODES, 2, "b")]))
    events = play(replay, burst([row(7, 7, "c", accept=7)], [row(7, 7, "d", accept=2)]))
    assert [event.text for event in events] == ["c", "d"]
    assert play(replay, burst([row(7, 7, "e", accept=9)]))[0].text == "e"


def test_likely_tokens_are_those_behind_what_a_token_follows():
    """Node 2 rests for a step; node 7 is then branched from, twice."""
    tree, replay = start(num_top=1)
    steps = [
        fork((7, "a"), (2, "b")),
        [row(7, 7, "c")],
        [row(7, 3, "d", branch=True), row(7, 4, "e", branch=True), row(2, 2, "f")],
    ]
    tops = likely({4: "A", 9: "z"}, {7: "C", 2: "F"}, {7: "D"})
    events = play(replay, burst(*steps) | tops)
    assert likeliest(tree) == {1: "AC", 2: "AF", 3: "D", 4: "D"}
    expected = {event.token: event.top_logprobs for event in events}
    assert expected[ord("f")] == ((ord("F"), -0.25),)
    assert tree.nodes()[0].top_logprobs == ()


def test_likely_tokens_are_left_out_where_the_request_wants_none():
    tree, replay = start()
    events = play(replay, burst(fork((7, "a"))) | likely({4: "A"}))
    assert events[0].top_logprobs == () and tree.nodes()[1].top_logprobs == ()


def test_likely_tokens_of_drafts_are_known_one_step_later():
    """The trunk takes what follows the last accepted draft."""
    tree, replay = start(num_top=2)
    events = play(
        replay,
        burst(
            [*fork((7, "a")), draft(NODES, 2, "b"), draft(NODES + 1, 3, "c")],
            [row(7, 7, "d", accept=3), draft(NODES, 5, "x")],
            [row(7, 7, "e")],
        )
        | likely({4: "A"}, {7: "B", 2: "C", 3: "D"}, {7: "E", 5: "Y"}),
    )
    assert texts(tree)[1] == "abcde"
    assert likeliest(tree)[1] == "ABCDE"
    told = [chr(event.top_logprobs[0][0]) for event in events]
    assert told == list("ABCDE")
    assert all(len(event.top_logprobs) == 2 for event in events)


def test_likely_tokens_of_a_rejected_draft_are_not_the_trunks():
    tree, replay = start(num_top=1)
    play(
        replay,
        burst(
            [*fork((7, "a")), draft(NODES, 2, "b"), draft(NODES + 1, 3, "c")],
            [row(7, 7, "d", accept=2)],
        )
        | likely({4: "A"}, {7: "B", 2: "D", 3: "Z"}),
    )
    assert texts(tree)[1] == "abd" and likeliest(tree)[1] == "ABD"


def test_a_row_chained_behind_another_gets_its_likely_tokens_a_step_later():
    """No draft: its event is told before they are known."""
    tree, replay = start(num_top=1)
    events = play(
        replay,
        burst(
            [*fork((7, "a")), row(NODES, 2, "b", branch=True)],
            [IDLE, row(2, 2, "c")],
        )
        | likely({4: "A"}, {7: "B", 2: "C"}),
    )
    assert likeliest(tree) == {1: "A", 2: "BC"}
    assert [bool(event.top_logprobs) for event in events] == [True, False, True]
