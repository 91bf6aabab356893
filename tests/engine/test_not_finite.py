"""Numbers that are not finite end their own request and touch no other one."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.models.families.llama import Llama
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from examples.beam_search import BeamSearch
from tests.support.strategies.prompt_lookup import PromptLookup
from tests.support.tiny_model import CONFIG, AsciiTokenizer

BROKEN = 99
"""Token whose embedding is not finite."""

A = [10, 20, 30, 40, 50]
B = [10] + [BROKEN] * 60
CAPACITY = Capacity(requests=3, rows=16, nodes=96, pages=64, page_size=8, chunk=32)
GREEDY = Sampling(temperature=0.0, max_new_tokens=10, ignore_eos=True)


@functools.cache
def model(value: float) -> Llama:
    """Return a random network in which the embedding of `BROKEN` is `value`."""
    graph, state = nnx.split(Llama.random(CONFIG, seed=1, dtype=jnp.float32))
    state = nnx.map_state(lambda path, x: x if x.ndim == 1 else x * 5.0, state)
    network = nnx.merge(graph, state)
    assert network.embedding is not None
    network.embedding[...] = network.embedding[...].at[BROKEN].set(value)
    return network


def new_engine(value: float = math.nan) -> Engine:
    return Engine(model(value), AsciiTokenizer(), capacity=CAPACITY)


@functools.cache
def alone(n: int = 1, value: float = math.nan) -> tuple:
    """Return what an engine that never saw anything else gives for A."""
    (tree,) = new_engine(value).generate(A, BestOfN(n), GREEDY)
    assert tree.notice is None
    return tuple((leaf.tokens, leaf.logprobs) for leaf in tree.leaves())


def leaves(tree) -> tuple:
    return tuple((leaf.tokens, leaf.logprobs) for leaf in tree.leaves())


def assert_same(tree, expected: tuple) -> None:
    """Assert that the branches are the same, but for the rounding of what is cached."""
    assert [tokens for tokens, _ in leaves(tree)] == [tokens for tokens, _ in expected]
    for (_, found), (_, logprobs) in zip(leaves(tree), expected, strict=True):
        np.testing.assert_allclose(found, logprobs, atol=2e-5)


def assert_broken(tree) -> None:
    assert tree.best().finish_reason == "not-finite"
    assert tree.notice is not None and "\n" not in tree.notice
    assert "NaN or infinite" in tree.notice
    assert all(map(math.isfinite, tree.best().logprobs))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_prompt_before_or_beside_another_changes_nothing(value):
    expected = alone(value=value)
    assert len(expected[0][0]) == 10 and BROKEN not in expected[0][0]
    engine = new_engine(value)
    (broken,) = engine.generate(B, sampling=GREEDY)
    assert_broken(broken)
    assert "61 prompt tokens and 0 generated" in str(broken.notice)
    (after,) = engine.generate(A, sampling=GREEDY)
    assert leaves(after) == expected and after.notice is None
    for prompts in ([A, B], [B, A], [B, A, B], [A, B, A]):
        trees = engine.generate(prompts, sampling=GREEDY)
        # A is cached, B is not: no broken number is ever shared.
        for prompt, tree in zip(prompts, trees, strict=True):
            if prompt is B:
                assert_broken(tree)
            else:
                assert tree.notice is None
                assert tree.best().tokens == expected[0][0]
                np.testing.assert_allclose(
                    tree.best().logprobs, expected[0][1], atol=2e-5
                )


def test_a_broken_request_frees_what_it_took():
    engine = new_engine()
    engine.generate([A, B, B, B, A], BestOfN(3), GREEDY)
    engine.clear_cache()
    state = engine.state
    assert state.tree.num_free_pages == CAPACITY.pages
    assert state.tree.num_free_nodes == CAPACITY.nodes
    assert not state.tree.live.any()
    assert (state.rows.node == CAPACITY.nodes).all()


def bias_to(token: int, **changes) -> Sampling:
    return dataclasses.replace(GREEDY, logit_bias={token: 1e6}, **changes)


def test_a_broken_token_that_was_generated_ends_its_request():
    """The first step draws the token, the second one finds its logits broken."""
    engine = new_engine()
    (tree,) = engine.generate(A, sampling=bias_to(BROKEN))
    assert_broken(tree)
    assert tree.best().tokens == (BROKEN,)
    assert "5 prompt tokens and 1 generated" in str(tree.notice)
    (after,) = engine.generate(A, sampling=GREEDY)
    assert_same(after, alone())


def test_all_branches_of_a_broken_request_end_and_keep_their_tokens():
    engine = new_engine()
    sampling = Sampling(max_new_tokens=30, ignore_eos=True, temperature=50.0, seed=3)
    (tree,) = engine.generate(A, BestOfN(8), sampling)
    drawn = [leaf.tokens for leaf in tree.leaves()]
    assert any(BROKEN in tokens for tokens in drawn), "choose another seed"
    assert {leaf.finish_reason for leaf in tree.leaves()} == {"not-finite"}
    assert len({len(tokens) for tokens in drawn}) == 1
    assert all(BROKEN not in tokens[:-1] for tokens in drawn)
    (after,) = engine.generate(A, sampling=GREEDY)
    assert_same(after, alone())


@pytest.mark.parametrize(
    "strategy", [BeamSearch(width=3, length=11), PromptLookup(depth=3, paths=2)]
)
def test_strategies_end_like_parallel_sampling(strategy):
    engine = new_engine()
    expected = engine.generate(A, strategy, GREEDY)[0]
    trees = engine.generate([B, A], strategy, GREEDY)
    assert_broken(trees[0])
    assert trees[1].best().tokens == expected.best().tokens
    assert trees[1].notice is None


def test_a_model_of_nans_says_so():
    graph, state = nnx.split(model(0.0))
    state = nnx.map_state(lambda path, x: jnp.full_like(x, jnp.nan), state)
    engine = Engine(nnx.merge(graph, state), AsciiTokenizer(), capacity=CAPACITY)
    for tree in engine.generate(["ab", "c"], BestOfN(2), GREEDY):
        assert_broken(tree)
        assert tree.to_dict()["branches"][0]["finish_reason"] == "not-finite"


def test_a_head_of_nans_breaks_the_logits_of_the_first_step():
    network = nnx.clone(model(0.0))
    network.head.weight[...] = network.head.weight[...].at[0, 0].set(jnp.nan)
    engine = Engine(network, AsciiTokenizer(), capacity=CAPACITY)
    (tree,) = engine.generate(A, BestOfN(2), GREEDY)
    assert tree.best().finish_reason == "not-finite"
    assert "the logits of a branch" in str(tree.notice)
