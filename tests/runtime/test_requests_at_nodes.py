"""Requests that start at a node which is no root, as a cache of prompts lets them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.engine.generation import make_request_table
from deft_jax.engine.runner import Runner
from deft_jax.runtime.attention_method import as_method
from deft_jax.runtime.split_nodes import split_nodes
from deft_jax.runtime.state import Chunk, StepLog
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import ContinueAll
from deft_jax.tree.branching import branch
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
        self.runner.prepare(CAPACITY, PLANNER)

    @property
    def state(self):
        return self.runner.state

    def edit(self, **changes):
        self.runner._state = dataclasses.replace(self.state, **changes)

    def feed(self, slot, text, row=None, is_root=True):
        """Feed tokens to a request's root, which is made if the request is new."""
        ids = AsciiTokenizer().encode(text)
        token = np.zeros(C, np.int32)
        request = np.full(C, R, np.int32)
        token[: len(ids)], request[: len(ids)] = ids, slot
        last = np.full(B, -1, np.int32)
        if row is not None:
            last[row] = len(ids) - 1
        starts = (np.arange(R) == slot) & is_root
        self.runner.prefill(Chunk(token, request, starts, last, np.zeros(B, np.int32)))
        self.state.tree.check()

    def start_below(self, slot, node):
        """Let a request begin in a new child of a node."""
        tree, child = branch(self.state.tree, jnp.array([node]), jnp.array([True]))
        roots = self.state.roots.at[slot].set(child[0])
        keys = self.state.branch_keys.with_roots(child)
        self.edit(tree=tree, roots=roots, branch_keys=keys)
        return int(child[0])

    def rest(self, *nodes):
        self.edit(resting=self.state.resting.at[jnp.array(nodes)].set(True))

    def decode(self, steps=1, dropped=()):
        mask = np.isin(np.arange(N), list(dropped))
        table = make_request_table(SAMPLING, [12] * R, EOS)
        state = self.runner.decode(table, mask, steps, PLANNER)
        state.tree.check()
        log = StepLog.unpack(np.asarray(state.log))
        return jax.tree.map(lambda x: x[: int(state.step)], vars(log))

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
    forest.feed(0, "The quick ")
    prompt = int(forest.state.roots[0])
    forest.rest(prompt)
    forest.start_below(0, prompt)
    forest.feed(0, "brown", row=0, is_root=False)
    alone = decode_alone("The quick brown", SAMPLING)
    assert tuple(forest.finish()[0]) == alone.tokens
    # What the request owned is gone, and the prompt rests.
    assert forest.live == [prompt]
    tree = forest.state.tree
    assert CAPACITY.pages - tree.num_free_pages == CAPACITY.pages_for(10)
    assert forest.state.resting[prompt]


def test_requests_below_a_running_one_outlive_it_and_do_not_end_it():
    """Their prompts begin alike, and part within the node of the first."""
    forest = Forest()
    forest.feed(0, "The quick brown", row=0)
    forest.decode(4)
    root = int(forest.state.roots[0])
    state, [upper] = split_nodes(forest.state, jnp.array([root]), jnp.array([10]))
    forest.edit(**vars(state))
    assert int(forest.state.roots[0]) == root
    forest.start_below(1, upper)
    forest.feed(1, "red fox", row=1, is_root=False)
    forest.start_below(2, root)
    forest.feed(2, "!", row=2, is_root=False)
    tokens = forest.finish()
    first = decode_alone("The quick brown", SAMPLING).tokens
    assert tuple(tokens[0]) == first[4:]
    assert tuple(tokens[1]) == decode_alone("The quick red fox", SAMPLING).tokens
    assert tuple(tokens[2]) == decode_alone("The quick brown!", SAMPLING).tokens
    assert forest.live == []
    assert forest.state.tree.num_free_pages == CAPACITY.pages


@pytest.mark.parametrize("rests", [False, True])
def test_a_request_that_the_host_drops_leaves_the_others_alone(rests):
    forest = Forest()
    forest.feed(0, "The quick brown", row=0)
    root = int(forest.state.roots[0])
    if rests:
        forest.rest(root)
    child = forest.start_below(1, root)
    forest.feed(1, " fox", row=1, is_root=False)
    forest.decode(2)
    forest.decode(0, dropped=[root])
    assert forest.state.roots.tolist() == [N, child, N]
    assert forest.state.rows.request.tolist()[:2] == [R, 1]
    assert root in forest.live
    forest.decode(0, dropped=[child])
    assert forest.state.roots.tolist() == [N] * R
    assert forest.live == ([root] if rests else [])


def test_dropping_the_lower_request_keeps_the_row_where_it_began():
    forest = Forest()
    forest.feed(0, "The quick brown", row=0)
    child = forest.start_below(1, int(forest.state.roots[0]))
    forest.feed(1, " fox", row=1, is_root=False)
    forest.decode(0, dropped=[child])
    assert forest.state.roots.tolist()[1] == N
    assert tuple(forest.finish()[0]) == decode_alone("The quick brown", SAMPLING).tokens


def test_a_request_of_a_resting_root_ends_when_its_last_branch_is_dropped():
    forest = Forest()
    forest.feed(0, "The quick brown", row=0)
    root = int(forest.state.roots[0])
    forest.rest(root)
    forest.decode(2)
    forest.decode(0, dropped=[int(forest.state.rows.node[0])])
    assert forest.state.roots.tolist() == [N] * R
    assert forest.live == [root]


def test_parts_of_a_node_that_rests_rest_and_those_of_a_kept_one_are_not_kept():
    forest = Forest()
    forest.feed(0, "The quick brown", row=0)
    root = int(forest.state.roots[0])
    forest.rest(root)
    forest.edit(keep=jnp.ones(N, bool))
    nodes, places = jnp.array([root, root]), jnp.array([3, 9])
    state, parts = split_nodes(forest.state, nodes, places)
    state.tree.check()
    assert state.resting[parts].tolist() == [True, True]
    assert not state.keep[parts].any() and state.keep[root]
    assert (state.branch_keys.key[parts] == state.branch_keys.key[root]).all()
    assert np.flatnonzero(state.resting).tolist() == sorted([root, *parts.tolist()])
