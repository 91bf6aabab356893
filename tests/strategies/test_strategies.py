"""Strategies that only tests have: the protocol is enough, the engine untouched."""

import numpy as np
import pytest

from deft_jax.results.tree_node import ROOT
from deft_jax.sampling.params import Sampling
from examples.beam_search import BeamSearch
from examples.best_first import BestFirst
from tests.support.strategies.prompt_lookup import PromptLookup
from tests.support.strategies.random_growth import RandomGrowth
from tests.support.strategies.take_turns import TakeTurns
from tests.support.tiny_model import (
    CAPACITY,
    EOS,
    AsciiTokenizer,
    decode_alone,
    path_logprobs,
    tiny_engine,
)

PROMPTS = ["x", "Hello world", "12345678", "The quick brown fox jumps over it."]
BEAM = BeamSearch(width=3, length=10)
LOOKUP = PromptLookup(depth=3, paths=2)
SEARCH = BestFirst(width=2, children=3, nodes=24)
TURNS = TakeTurns(n=3)
GROWTH = RandomGrowth(width=4, children=3, nodes=28, steps=30)


def path_tokens(tree, node):
    return tuple(token for step in tree.path(node)[1:] for token in step.tokens)


def next_logprobs(prompt, tokens):
    """Return [V] float64 log-probabilities of what follows a prompt and tokens."""
    return path_logprobs([*AsciiTokenizer().encode(prompt), *tokens])[-1]


@pytest.mark.parametrize("strategy", [BEAM, SEARCH, TURNS, LOOKUP, GROWTH])
def test_every_path_has_the_models_own_logprobs(strategy):
    sampling = Sampling(temperature=0.0, max_new_tokens=10)
    for tree in tiny_engine().generate(PROMPTS, strategy, sampling):
        prompt = list(tree.nodes[0].tokens)
        for leaf in tree.leaves():
            tokens = path_tokens(tree, leaf)
            exact = path_logprobs([*prompt, *tokens])[len(prompt) - 1 : -1]
            told = [x for step in tree.path(leaf) for x in step.logprobs]
            exact = exact[np.arange(len(tokens)), list(tokens)]
            np.testing.assert_allclose(told, exact, atol=2e-4)


def beam_search(prompt, width, length):
    """Textbook beam search: {tokens: score} of the hypotheses that ended."""
    beam: dict[tuple[int, ...], float] = {(): 0.0}
    ended: dict[tuple[int, ...], float] = {}
    while beam:
        scores: dict[tuple[int, ...], float] = {
            (*tokens, token): score + logprob
            for tokens, score in beam.items()
            for token, logprob in enumerate(next_logprobs(prompt, tokens))
        }
        best = sorted(scores, key=lambda tokens: -scores[tokens])[:width]
        done = [x for x in best if x[-1] in EOS or len(x) == length]
        ended |= {tokens: scores[tokens] for tokens in done}
        beam = {tokens: scores[tokens] for tokens in best if tokens not in done}
        width = len(beam)
    return ended


def test_beam_search_equals_a_plain_one():
    trees = tiny_engine().generate(PROMPTS, BEAM, Sampling(max_new_tokens=10))
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        expected = beam_search(prompt, BEAM.width, BEAM.length)
        found = {}
        for leaf in tree.leaves():
            if leaf.finish_reason != "pruned":
                tokens = path_tokens(tree, leaf)
                found[tokens] = tree.mean_logprob(leaf) * len(tokens)
        assert set(found) == set(expected)
        for tokens, score in expected.items():
            assert found[tokens] == pytest.approx(score, abs=1e-3)


def test_beam_search_branches_and_prunes():
    """Otherwise it would be no test of the tree."""
    trees = tiny_engine().generate(PROMPTS, BEAM, Sampling(max_new_tokens=10))
    paths = [(tree.path(leaf), leaf) for tree in trees for leaf in tree.leaves()]
    assert max(len(path) for path, _ in paths) > 4
    assert sum(leaf.finish_reason == "pruned" for _, leaf in paths) > 4


def best_first(prompt, search, length):
    """Best-first search: {tokens: whether the path ended there}."""
    offers, tree, size = {}, {}, 1
    fed = [((), 0.0)]
    while fed:
        for tokens, score in fed:
            logprobs = next_logprobs(prompt, tokens)
            for token in np.argsort(-logprobs)[: search.children]:
                offers[*tokens, int(token)] = score + logprobs[token]
        best = sorted(offers, key=lambda tokens: -offers[tokens])
        picks = best[: min(search.width, search.nodes - size)]
        ended = {x: x[-1] in EOS or len(x) == length for x in picks}
        tree |= ended
        size += len(picks)
        fed = [] if any(ended.values()) else [(x, offers.pop(x)) for x in picks]
    return tree


def test_best_first_search_equals_a_plain_one():
    """Nodes rest for many steps, and get more children after they have some."""
    trees = tiny_engine().generate(PROMPTS, SEARCH, Sampling(max_new_tokens=10))
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        found = {
            path_tokens(tree, node): node.finish_reason in ("stop", "length")
            for node in tree.nodes[1:]
        }
        assert found == best_first(prompt, SEARCH, 10)


def test_best_first_search_comes_back_to_nodes_that_rested():
    trees = tiny_engine().generate(PROMPTS, SEARCH, Sampling(max_new_tokens=10))
    returns = 0
    for tree in trees:
        parents = [node.parent or ROOT for node in tree.nodes[1:]]
        returns += sum(
            later < earlier
            for earlier, later in zip(parents, parents[1:], strict=False)
        )
    assert returns > 3


def test_random_growth_loses_no_node_that_rests():
    trees = tiny_engine().generate(PROMPTS, GROWTH, Sampling(max_new_tokens=10))
    assert all(len(tree.nodes) > 20 for tree in trees)
    assert max(len(node.tokens) for tree in trees for node in tree.nodes[1:]) > 2
    state = tiny_engine().runner.planner_state(GROWTH.planner).own
    assert int(state["lost"]) == 0
    assert int(state["wrong"]) == 0


@pytest.mark.parametrize("stop", [(), ("aa", "8I", "YI", "be")])
def test_branches_that_take_turns_equal_branches_side_by_side(stop):
    """Resting nodes go on where they stopped; a stop string ends none but its own.

    With seed 0 the first branch of one prompt ends before the others have begun.
    """
    sampling = Sampling(temperature=0.9, max_new_tokens=24, seed=0, stop=stop)
    for tree in tiny_engine().generate(PROMPTS, TURNS, sampling):
        found = [(leaf.tokens, leaf.text, leaf.finish_reason) for leaf in tree.leaves()]
        alone = [decode_alone(tree.prompt, sampling, i) for i in range(TURNS.n)]
        assert sorted(found) == sorted(
            (text.tokens, text.text, text.finish_reason) for text in alone
        )


DRAFTED = {
    "greedy": Sampling(temperature=0.0, max_new_tokens=24),
    "biased": Sampling(
        temperature=0.0, max_new_tokens=24, logit_bias={97: 30.0, 98: 30.0}
    ),
    "sampled": Sampling(temperature=0.9, max_new_tokens=24, seed=2),
    "penalty": Sampling(temperature=0.0, max_new_tokens=24, repetition_penalty=1.3),
    "few_tokens": Sampling(
        temperature=0.9, max_new_tokens=24, logit_bias=dict.fromkeys((97, 98, 99), 50.0)
    ),
}
"""The last draws from three tokens alone, so that many drafts are right."""


@pytest.mark.parametrize("name", DRAFTED)
def test_speculative_decoding_equals_plain_decoding(name):
    sampling = DRAFTED[name]
    trees = tiny_engine().generate(PROMPTS, LOOKUP, sampling)
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        alone = decode_alone(prompt, sampling)
        _, branch = tree.nodes
        assert branch.tokens == alone.tokens
        assert branch.finish_reason == alone.finish_reason
        np.testing.assert_allclose(branch.logprobs, alone.logprobs, atol=2e-4)


@pytest.fixture
def decode_steps(monkeypatch):
    """Step of each burst that the engine runs."""
    steps = []
    runner = tiny_engine().runner
    decode = runner.decode

    def counting(*args):
        report = decode(*args)
        steps.append(int(report.numbers[0]))
        return report

    monkeypatch.setattr(runner, "decode", counting)
    return steps


def test_speculative_decoding_takes_fewer_steps_and_leaks_no_pages(decode_steps):
    """Slots of rejected drafts are used again.

    What is stored at any time is the text and the drafts of one step.
    """
    sampling = Sampling(**{**vars(DRAFTED["few_tokens"]), "max_new_tokens": 80})
    statuses = []
    (tree,) = tiny_engine().generate(
        "abcabc",
        LOOKUP,
        sampling,
        on_token=lambda event: None,
        on_status=statuses.append,
    )
    assert len(tree.best().tokens) == 80
    assert sum(decode_steps) < 60
    for status in statuses:
        drafts = LOOKUP.depth * LOOKUP.paths
        most = CAPACITY.pages_for(6) + CAPACITY.pages_for(
            status.generated_tokens + drafts
        )
        assert status.pages_used <= most


def test_stop_strings_end_speculative_decoding():
    sampling = Sampling(**{**vars(DRAFTED["few_tokens"]), "stop": ("cab", "bb")})
    told = []
    trees = tiny_engine().generate(PROMPTS, LOOKUP, sampling, on_token=told.append)
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        alone = decode_alone(prompt, sampling)
        branch = tree.best()
        assert (branch.tokens, branch.text) == (alone.tokens, alone.text)
        assert branch.finish_reason == alone.finish_reason
        events = [event.text for event in told if event.request == tree.request]
        assert "".join(events) == branch.text


def test_an_interrupt_drops_drafts_that_were_not_judged():
    sampling = Sampling(**{**vars(DRAFTED["few_tokens"]), "max_new_tokens": 80})
    polls = iter([False] * 4 + [True])
    (tree,) = tiny_engine().generate(
        "abcabc", LOOKUP, sampling, should_stop=lambda: next(polls)
    )
    _, branch = tree.nodes
    alone = decode_alone("abcabc", sampling).tokens
    assert 0 < len(branch.tokens) < len(alone)
    assert branch.tokens == alone[: len(branch.tokens)]
    assert branch.finish_reason == "interrupted"


def test_all_state_is_free_again():
    state = tiny_engine().state
    assert state.tree.num_free_pages == CAPACITY.pages
    assert state.tree.num_free_nodes == CAPACITY.nodes
