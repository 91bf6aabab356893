"""Strategies that do not keep to their word: the engine says so and stays usable."""

import dataclasses

import jax.numpy as jnp
import pytest

from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.errors import DeftError
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from deft_jax.strategies.protocol import RUNNING, Plan, View
from tests.support.bench.replay_engines import TightEngine
from tests.support.strategies.checked_cases import CheckedCases
from tests.support.strategies.common import Example
from tests.support.tiny_model import (
    CAPACITY,
    CONFIG,
    AsciiTokenizer,
    decode_alone,
    tiny_engine,
    tiny_model,
)

GREEDY = Sampling(temperature=0.0, max_new_tokens=20, ignore_eos=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sprawl(Example):
    """One branch per request, which declares two nodes.

    Request slot 1 makes a node of every token. A prompt of 20 tokens is stopped.

    Attributes:
        stop_after: steps until then.
    """

    rows: int = 1
    nodes: int = 2
    stop_after: int

    def init(self, capacity: Capacity):
        return jnp.int32(0)

    def plan(self, state, view: View):
        plan = Plan.continue_all(view)
        is_short = view.tree.count.at[view.roots].get(mode="fill", fill_value=0) == 20
        return state + 1, dataclasses.replace(
            plan,
            branch=plan.branch | (view.request == 1),
            stop=is_short & (state == self.stop_after),
        )


PROMPTS = ["a" * 20, "b" * 8, "c" * 100]


def sprawling_engine(pages: int) -> Engine:
    capacity = Capacity(
        requests=3, rows=4, nodes=64, pages=pages, page_size=8, chunk=32
    )
    return Engine(tiny_model(), AsciiTokenizer(), capacity=capacity, prefix_cache=False)


def tokens_of(tree) -> tuple[int, ...]:
    """Return the tokens of a tree with one branch, whatever nodes they are in."""
    (leaf,) = tree.leaves()
    return tuple(token for node in tree.path(leaf)[1:] for token in node.tokens)


def test_a_prompt_that_does_not_fit_waits_instead_of_losing_tokens():
    """10 pages are free when the third starts; its 100 tokens take 4, 4, 4 and 1.

    Without a look at the overflow it would be decoded from 32 + 32 + 4 tokens.
    """
    engine = sprawling_engine(pages=23)
    trees = engine.generate(PROMPTS, Sprawl(stop_after=12), GREEDY)
    for prompt, tree, count in zip(PROMPTS, trees, (13, 20, 20), strict=True):
        assert tokens_of(tree) == decode_alone(prompt, GREEDY).tokens[:count]
        assert tree.notice is None
    assert trees[0].stats.prompt_tokens_done == sum(map(len, PROMPTS))
    assert engine.state.tree.num_free_pages == 23
    assert engine.state.tree.num_free_nodes == 64


def test_a_pool_that_runs_out_while_it_decodes_ends_nothing():
    """All three start at once; the last gives way and goes on when others have ended.

    The first takes 3 pages for its prompt and 2 for its tokens, the second 1 and 20,
    the third 13 and 3.
    """
    engine = TightEngine(CAPACITY, pages=26, nodes=64)
    trees = engine.generate(PROMPTS, Sprawl(stop_after=12), GREEDY)
    for prompt, tree, count in zip(PROMPTS, trees, (13, 20, 20), strict=True):
        assert tokens_of(tree) == decode_alone(prompt, GREEDY).tokens[:count]
        assert tree.notice is None
    assert engine.state.tree.num_free_pages == 26


def test_a_prompt_that_does_not_fit_an_empty_pool_ends_alone():
    """The pool has fewer free pages than the capacity says: 10 of 8 tokens."""
    engine = TightEngine(CAPACITY, pages=10, nodes=CAPACITY.nodes)
    trees = engine.generate(["x" * 100, "Hello", "y" * 90, "abc"], sampling=GREEDY)
    for tree in trees[::2]:
        (root,) = tree.nodes
        assert root.finish_reason == "capacity"
        assert "64 pages of 8 tokens" in str(tree.notice)
        assert tree.to_dict()["branches"][0]["finish_reason"] == "capacity"
    for prompt, tree in zip(["Hello", "abc"], trees[1::2], strict=True):
        assert tree.best().tokens == decode_alone(prompt, GREEDY).tokens
        assert tree.notice is None
    assert engine.state.tree.num_free_pages == 10
    assert not engine.state.tree.live.any()


FIELDS = ("finish", "token", "source")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong(Example):
    """Parallel sampling with one field of each plan changed from the third step on.

    All are equal and find what to change in their state, so that they share a program.

    Attributes:
        rows: branches per request.
        nodes: the branches and the prompt.
        field: one of `FIELDS` of the plan.
        value: for all rows.
    """

    rows: int = dataclasses.field(default=2, compare=False)
    nodes: int = dataclasses.field(default=3, compare=False)
    field: str = dataclasses.field(compare=False)
    value: int = dataclasses.field(compare=False)

    def init(self, capacity: Capacity):
        return jnp.array([0, FIELDS.index(self.field), self.value], jnp.int32)

    def plan(self, state, view: View):
        step, field, value = state
        plan = Plan.continue_all(view)
        is_wrong = (step >= 2) & (plan.source >= 0)
        changes = {
            name: jnp.where(is_wrong & (field == at), value, getattr(plan, name))
            for at, name in enumerate(FIELDS)
        }
        return state.at[0].add(1), dataclasses.replace(plan, **changes)


@pytest.fixture(scope="module")
def checked_cases() -> CheckedCases:
    return CheckedCases(Wrong(field="token", value=0))


def assert_usable():
    (tree,) = tiny_engine().generate("Hello", BestOfN(2), GREEDY)
    assert tree.best().tokens == decode_alone("Hello", GREEDY).tokens
    assert tiny_engine().state.tree.num_free_pages == CAPACITY.pages


@pytest.mark.parametrize("n", [1, 2])
def test_a_planner_that_never_finishes_is_ended_at_the_limit(n):
    strategy = Wrong(rows=n, nodes=n + 1, field="finish", value=RUNNING)
    events = []
    for prompts in (["Hello"], ["Hello", "abc", "x", "yz"]):
        for on_token in (None, events.append):
            trees = tiny_engine().generate(prompts, strategy, GREEDY, on_token=on_token)
            for prompt, tree in zip(prompts, trees, strict=True):
                alone = decode_alone(prompt, GREEDY)
                assert [leaf.tokens for leaf in tree.leaves()] == [alone.tokens] * n
                assert {leaf.finish_reason for leaf in tree.leaves()} == {"length"}
    assert_usable()


def assert_left_out(strategy: Wrong, wrong: str):
    """Check that rows that cannot be carried out end their branches, with a notice."""
    trees = tiny_engine().generate(["Hello", "abc"], strategy, GREEDY)
    for row, prompt, tree in zip([0, 2], ["Hello", "abc"], trees, strict=True):
        alone = decode_alone(prompt, GREEDY)
        for leaf in tree.leaves():
            assert leaf.finish_reason == "pruned"
            assert leaf.tokens == alone.tokens[:2]
        assert "\n" not in str(tree.notice)
        assert str(tree.notice).startswith(
            f"the strategy's plan lets row {row} {wrong}"
        )
    assert_usable()


@pytest.mark.parametrize("token", [CONFIG.vocab_size, 10**6, -1])
def test_a_token_outside_the_vocabulary_is_left_out(token, checked_cases):
    strategy = Wrong(field="token", value=token)
    assert_left_out(strategy, f"take token {token}; the vocabulary has 0 to 127")
    with pytest.raises(DeftError, match=f"token {token}; the vocabulary has 0 to 127"):
        tiny_engine().generate("Hello", checked_cases.take(strategy), GREEDY)
    assert_usable()


@pytest.mark.parametrize(
    "source", [50, CAPACITY.nodes - 1, CAPACITY.nodes + 1, CAPACITY.nodes + 99, 10**6]
)
def test_a_source_that_is_not_there_is_left_out(source, checked_cases):
    strategy = Wrong(field="source", value=source)
    number = source - CAPACITY.nodes
    what = f"node {source}" if number < 0 else f"row {number} of the plan"
    assert_left_out(strategy, f"continue {what}, which is n")
    with pytest.raises(DeftError, match="row 0 continues|both grow node") as error:
        tiny_engine().generate("Hello", checked_cases.take(strategy), GREEDY)
    assert "\n" not in str(error.value)
    assert_usable()
