"""Requests that start at a node which is no root, as a cache of prompts lets them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.engine.runner import Runner, empty_chunk, empty_edit
from deft_jax.runtime.attention_method import as_method
from deft_jax.runtime.split_nodes import split_nodes
from deft_jax.runtime.state import Numbers, StepLog, Turn
from deft_jax.sampling.params import Sampling
from deft_jax.sampling.request_table import make_request_table
from deft_jax.strategies.parallel import ContinueAll
from deft_jax.tree.state import NO_NODE
from tests.support.tiny_model import (
    CAPACITY,
    EOS,
    AsciiTokenizer,
    decode_alone,
    tiny_model,
)

R, B, C, N = CAPACITY.requests, CAPACITY.rows, CAPACITY.chunk, CAPACITY.nodes
SAMPLING = Sampling(temperature=0.9, max_new_tokens=12, ignore_eos=True, seed=5)
PLANNER = ContinueAll()


class Forest:
    """A runner whose forest the test edits between bursts."""

    def __init__(self):
        self.runner = Runner(tiny_model(), as_method(None))
        self.runner.prepare(CAPACITY)
        self.runner.start_planner(PLANNER)

    @property
    def state(self):
        return self.runner.state

    def feed(self, slot, text, row=None, above=NO_NODE):
        """Feed tokens to a request's new root, below a node or none."""
        ids = AsciiTokenizer().encode(text)
        chunk, end = empty_chunk(CAPACITY, C), len(ids)
        chunk.token[:end], chunk.request[:end] = ids, slot
        chunk.node[:end] = N + R + slot
        chunk.starts[slot], chunk.root[slot] = True, above
        if row is not None:
            chunk.last[row] = end - 1
        self.runner.feed(chunk)
        self.state.tree.check()
        return int(self.state.roots[slot])

    def mark_resting(self, *nodes):
        """Let nodes rest; rows that are there go on."""
        resting = self.state.resting.at[jnp.array(nodes)].set(True)
        self.runner._state = dataclasses.replace(self.state, resting=resting)

    def edit(self, **marked):
        """Mark nodes in masks of an edit, and make it."""
        changes = empty_edit(CAPACITY)
        for name, nodes in marked.items():
            getattr(changes, name)[nodes] = True
        self.runner.edit(changes)
        self.state.tree.check()

    def split(self, node, at):
        """Split a node; return the new one, which has its first tokens."""
        changes = empty_edit(CAPACITY)
        changes.split[0], changes.at[0] = node, at
        report = self.runner.edit(changes)
        self.state.tree.check()
        return int(Numbers.unpack(np.asarray(report.numbers), R).split_off[0])

    def decode(self, steps=1):
        table = make_request_table([SAMPLING] * R, [12] * R, EOS)
        none = np.zeros(R, bool)
        turn = Turn(~none, none, none, np.int32(steps))
        report = self.runner.decode(table, turn, PLANNER, B)
        self.state.tree.check()
        log = StepLog.unpack(np.asarray(report.log))
        taken = Numbers.unpack(np.asarray(report.numbers), R).steps
        return jax.tree.map(lambda x: x[:taken], vars(log))

    def finish(self):
        """Decode until no request is left; return the tokens of each slot."""
        tokens = {slot: [] for slot in range(R)}
        while (np.asarray(self.state.roots) < N).any():
            log = self.decode(64)
            for step, row in zip(*np.nonzero(log["source"] >= 0), strict=True):
                tokens[int(log["request"][step, row])].append(log["token"][step, row])
        return tokens

    @property
    def live(self):
        return np.flatnonzero(self.state.tree.live).tolist()


def test_a_request_below_a_resting_prompt_reads_as_the_whole_prompt():
    forest = Forest()
    prompt = forest.feed(0, "The quick ")
    forest.mark_resting(prompt)
    forest.feed(0, "brown", row=0, above=prompt)
    alone = decode_alone("The quick brown", SAMPLING)
    assert tuple(forest.finish()[0]) == alone.tokens
    # What the request owned is gone, and the prompt rests.
    assert forest.live == [prompt]
    tree = forest.state.tree
    assert CAPACITY.pages - tree.num_free_pages == CAPACITY.pages_for(10)
    assert forest.state.resting[prompt]


def test_requests_below_parts_of_a_prompt_outlive_each_other():
    """Their prompts part within the node of the first, which is decoding already."""
    forest = Forest()
    prompt = forest.feed(0, "The quick brow")
    forest.mark_resting(prompt)
    forest.feed(0, "n", row=0, above=prompt)
    forest.decode(4)
    upper = forest.split(prompt, 10)
    forest.feed(1, "red fox", row=1, above=upper)
    forest.feed(2, "n!", row=2, above=prompt)
    tokens = forest.finish()
    first = decode_alone("The quick brown", SAMPLING).tokens
    assert tuple(tokens[0]) == first[4:]
    assert tuple(tokens[1]) == decode_alone("The quick red fox", SAMPLING).tokens
    assert tuple(tokens[2]) == decode_alone("The quick brown!", SAMPLING).tokens
    assert forest.live == sorted([prompt, upper])


def test_a_request_that_the_host_drops_leaves_the_others_alone():
    forest = Forest()
    prompt = forest.feed(0, "The quick brow")
    forest.mark_resting(prompt)
    first = forest.feed(0, "n", row=0, above=prompt)
    second = forest.feed(1, "n fox", row=1, above=prompt)
    forest.decode(2)
    forest.edit(dropped=[first])
    assert forest.state.roots.tolist() == [N, second, N]
    assert forest.state.rows.request.tolist()[:2] == [R, 1]
    forest.edit(dropped=[second])
    assert forest.state.roots.tolist() == [N] * R
    assert forest.live == [prompt]
    # What rests goes if the host says so, and then alone.
    forest.edit(dropped=[prompt])
    assert forest.live == []
    assert forest.state.tree.num_free_pages == CAPACITY.pages


def test_dropping_the_lower_request_keeps_the_row_where_it_began():
    forest = Forest()
    root = forest.feed(0, "The quick brown", row=0)
    child = forest.feed(1, " fox", row=1, above=root)
    forest.edit(dropped=[child])
    assert forest.state.roots.tolist()[1] == N
    assert tuple(forest.finish()[0]) == decode_alone("The quick brown", SAMPLING).tokens


def test_a_request_ends_when_its_last_branch_is_to_rest():
    forest = Forest()
    root = forest.feed(0, "The quick brown", row=0)
    forest.decode(2)
    leaf = int(forest.state.rows.node[0])
    forest.edit(rest=[leaf])
    assert forest.state.roots.tolist() == [N] * R
    assert forest.live == sorted({root, leaf})
    assert forest.state.resting[root] and forest.state.resting[leaf]


def test_parts_of_a_node_that_rests_rest_and_those_of_a_kept_one_are_not_kept():
    forest = Forest()
    root = forest.feed(0, "The quick brown", row=0)
    forest.mark_resting(root)
    kept = dataclasses.replace(forest.state, keep=jnp.ones(N, bool))
    nodes, places = jnp.array([root, root]), jnp.array([3, 9])
    state, parts = split_nodes(kept, nodes, places)
    state.tree.check()
    assert state.resting[parts].tolist() == [True, True]
    assert not state.keep[parts].any() and state.keep[root]
    assert (state.branch_keys.key[parts] == state.branch_keys.key[root]).all()
    assert np.flatnonzero(state.resting).tolist() == sorted([root, *parts.tolist()])
