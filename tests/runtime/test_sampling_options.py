"""Penalties, stop tokens and likely tokens in trees: what one sequence alone gives.

The oracle here decodes one sequence at a time in Python, with the float64 logarithms
of a dense forward pass, and knows nothing of the code that samples.
"""

import dataclasses
import json

import numpy as np
import pytest

from deft_jax.results.tree_node import ROOT
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.checked_strategy import checked
from deft_jax.strategies.parallel import BestOfN
from examples.beam_search import BeamSearch
from examples.best_first import BestFirst
from tests.support.strategies.prompt_lookup import PromptLookup
from tests.support.strategies.random_growth import RandomGrowth
from tests.support.strategies.take_turns import TakeTurns
from tests.support.tiny_model import (
    EOS,
    AsciiTokenizer,
    decode_alone,
    path_logprobs,
    tiny_engine,
)

PROMPTS = ["x", "Hello world", "12345678", "The quick brown fox jumps over it."]
LENGTH = 10
BEAM = BeamSearch(width=3, length=LENGTH)
LOOKUP = PromptLookup(depth=3, paths=2)
SEARCH = BestFirst(width=2, children=3, nodes=24)
TURNS = TakeTurns(n=3)
GROWTH = RandomGrowth(width=4, children=3, nodes=28, steps=30)
STRATEGIES = [BestOfN(3), BEAM, SEARCH, TURNS, LOOKUP, GROWTH]

FEW = dict.fromkeys(range(97, 101), 50.0)
"""Biases that leave four tokens, which come again and again: there is much to count."""

BASE = Sampling(temperature=0.0, logit_bias=FEW)
PENALTIES = {
    "frequency": dataclasses.replace(BASE, frequency_penalty=2.0),
    "presence": dataclasses.replace(BASE, presence_penalty=2.0),
    "rewards": dataclasses.replace(BASE, presence_penalty=-2, frequency_penalty=-0.7),
    "both": dataclasses.replace(BASE, presence_penalty=-1.3, frequency_penalty=1.4),
    "all": dataclasses.replace(
        BASE, presence_penalty=1.1, frequency_penalty=1.7, repetition_penalty=1.05
    ),
}


def with_length(sampling, max_new_tokens=24):
    return dataclasses.replace(sampling, max_new_tokens=max_new_tokens)


def greedy_alone(prompt, sampling):
    """Decode greedily, one token after the other, as OpenAI defines the penalties.

    Log-probabilities stand for logits, from which they differ by a number per place.
    """
    ids, tokens = AsciiTokenizer().encode(prompt), []
    ends = {*(() if sampling.ignore_eos else EOS), *sampling.stop_token_ids}
    while len(tokens) < sampling.max_new_tokens and not ends & set(tokens):
        score = path_logprobs([*ids, *tokens])[-1]
        tokens.append(int(np.argmax(penalised(score, tokens, sampling))))
    return tuple(tokens)


def penalised(logprobs, tokens, sampling):
    """Return [V] log-probabilities, not normalised, after bias and penalties."""
    score = logprobs.copy()
    for token, bias in sampling.logit_bias.items():
        score[token] += bias
    for token in set(tokens):
        often = tokens.count(token) * sampling.frequency_penalty
        score[token] -= often + sampling.presence_penalty
    return score


@pytest.mark.parametrize("name", [name for name in PENALTIES if name != "all"])
def test_greedy_branches_under_penalties_equal_a_plain_loop(name):
    sampling = with_length(PENALTIES[name])
    trees = tiny_engine().generate(PROMPTS, BestOfN(2), sampling)
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        expected = greedy_alone(prompt, sampling)
        assert [leaf.tokens for leaf in tree.leaves()] == [expected] * 2


@pytest.mark.parametrize("strategy", [BestOfN(3), TURNS, LOOKUP])
@pytest.mark.parametrize("name", PENALTIES)
def test_branches_under_penalties_equal_sequences(name, strategy):
    """Drafts are verified under the penalties of the path that they are on."""
    sampling = with_length(PENALTIES[name])
    if strategy is not LOOKUP:
        sampling = dataclasses.replace(sampling, temperature=0.9, seed=5)
    trees = tiny_engine().generate(PROMPTS, strategy, sampling)
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        leaves = tree.leaves()
        alone = [decode_alone(prompt, sampling, n) for n in range(len(leaves))]
        assert sorted(leaf.tokens for leaf in leaves) == sorted(
            sequence.tokens for sequence in alone
        )


def test_the_penalties_make_a_difference():
    found = {
        tuple(decode_alone(prompt, with_length(sampling)).tokens for prompt in PROMPTS)
        for sampling in (*PENALTIES.values(), BASE)
    }
    assert len(found) == len(PENALTIES) + 1


def test_stop_tokens_end_branches_and_nothing_else_changes():
    base = Sampling(temperature=0.9, max_new_tokens=24, seed=4, ignore_eos=True)
    texts = [decode_alone(prompt, base).tokens for prompt in PROMPTS]
    ends = (texts[0][6], texts[1][9], EOS[2])
    sampling = dataclasses.replace(base, stop_token_ids=ends)
    trees = tiny_engine().generate(PROMPTS, BestOfN(3), sampling)
    reasons = set()
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        for number, leaf in enumerate(tree.leaves()):
            alone = decode_alone(prompt, base, number).tokens
            places = [i for i, token in enumerate(alone) if token in ends]
            assert leaf.tokens == alone[: places[0] + 1 if places else len(alone)]
            assert leaf.finish_reason == ("stop" if places else "length")
            reasons.add(leaf.finish_reason)
    assert reasons == {"stop", "length"}


def test_ends_of_text_and_stop_tokens_end_branches_beside_each_other():
    sampling = Sampling(temperature=0.9, max_new_tokens=24, seed=4)
    own = decode_alone(PROMPTS[1], sampling).tokens[3]
    sampling = dataclasses.replace(sampling, stop_token_ids=(own,))
    trees = tiny_engine().generate(PROMPTS, BestOfN(5), sampling)
    leaves = [leaf for tree in trees for leaf in tree.leaves()]
    last = {leaf.tokens[-1] for leaf in leaves if leaf.finish_reason == "stop"}
    assert own in last and set(EOS) & last and last <= {own, *EOS}
    assert not any({own, *EOS} & set(leaf.tokens[:-1]) for leaf in leaves)


@pytest.mark.parametrize("strategy", [BEAM, SEARCH, LOOKUP, GROWTH])
def test_stop_tokens_end_the_branches_of_every_strategy(strategy):
    plain = Sampling(temperature=0.0, max_new_tokens=LENGTH, ignore_eos=True)
    (tree,) = tiny_engine().generate(PROMPTS[1], strategy, plain)
    end = tree.path(tree.best())[1:][-1].tokens[-1]
    sampling = dataclasses.replace(plain, stop_token_ids=(end,))
    trees = tiny_engine().generate(PROMPTS, strategy, sampling)
    ended = 0
    for tree in trees:
        for node in tree.nodes[1:]:
            assert end not in node.tokens[:-1]
            is_end = node.tokens[-1] == end
            assert (node.finish_reason == "stop") == is_end
            ended += is_end
    assert ended > 0


def likely_tokens(tree, node, count):
    """Return what a dense model gives for the tokens of a node: ids, and log-probs."""
    before = [t for step in tree.path(node)[:-1] for t in step.tokens]
    exact = path_logprobs([*before, *node.tokens])[len(before) - 1 : -1]
    order = np.argsort(-exact, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(exact, order, axis=1)


def assert_likely(tree, count):
    """Check the likely tokens of every place of a tree against a dense model."""
    assert tree.nodes[ROOT].top_logprobs == ()
    for node in tree.nodes[1:]:
        assert len(node.top_logprobs) == len(node.tokens)
        tops = np.array(node.top_logprobs)
        ids, logprobs = likely_tokens(tree, node, count)
        np.testing.assert_allclose(tops[:, :, 1], logprobs, atol=2e-4)
        clear = np.all(np.diff(logprobs, axis=1) < -1e-3, axis=1)
        np.testing.assert_array_equal(tops[clear, :, 0], ids[clear])
        for token, logprob, likely in zip(
            node.tokens, node.logprobs, node.top_logprobs, strict=True
        ):
            assert dict(likely).get(token, logprob) == pytest.approx(logprob, abs=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"seed": 3}])
def test_every_token_has_the_likely_tokens_of_its_place(strategy, settings):
    sampling = Sampling(max_new_tokens=LENGTH, logprobs=5, **settings)
    for tree in tiny_engine().generate(PROMPTS, strategy, sampling):
        assert_likely(tree, 5)


@pytest.mark.parametrize("logprobs", [1, 20])
def test_drafts_have_the_likely_tokens_of_their_place(logprobs):
    """Three tokens are drawn from, so that many drafts are right."""
    sampling = Sampling(
        max_new_tokens=24,
        temperature=0.9,
        logit_bias=dict.fromkeys((97, 98, 99), 50.0),
        logprobs=logprobs,
    )
    events = []
    trees = tiny_engine().generate(PROMPTS, LOOKUP, sampling, on_token=events.append)
    for tree in trees:
        assert_likely(tree, logprobs)
        told = [event.top_logprobs for event in events if event.request == tree.request]
        assert tuple(told) == tree.nodes[1].top_logprobs
        alone = decode_alone(tree.prompt, sampling)
        assert tree.nodes[1].tokens == alone.tokens


def test_likely_tokens_change_nothing_else():
    sampling = Sampling(temperature=0.9, max_new_tokens=LENGTH, seed=1)
    wanted = dataclasses.replace(sampling, logprobs=3)
    for strategy in (BestOfN(3), BEAM):
        plain = tiny_engine().generate(PROMPTS, strategy, sampling)
        rich = tiny_engine().generate(PROMPTS, strategy, wanted)
        for one, other in zip(plain, rich, strict=True):
            assert all(node.top_logprobs == () for node in one.nodes)
            nodes = [dataclasses.replace(x, top_logprobs=()) for x in other.nodes]
            assert tuple(nodes) == one.nodes


def test_events_and_json_carry_the_likely_tokens():
    sampling = Sampling(temperature=0.9, max_new_tokens=LENGTH, seed=1, logprobs=2)
    events = []
    (tree,) = tiny_engine().generate("x", BestOfN(2), sampling, on_token=events.append)
    for node in tree.nodes[1:]:
        told = [event.top_logprobs for event in events if event.node == node.id]
        assert tuple(told) == node.top_logprobs
    written = json.loads(json.dumps(tree.to_dict()))["nodes"]
    for node, fields in zip(tree.nodes, written, strict=True):
        tops = tuple(tuple(map(tuple, place)) for place in fields["top_logprobs"])
        assert tops == node.top_logprobs


def test_a_checked_strategy_agrees_with_stop_tokens_and_likely_tokens():
    sampling = Sampling(max_new_tokens=6, logprobs=2, stop_token_ids=(101, 111))
    (tree,) = tiny_engine().generate("Hello", checked(BestOfN(2)), sampling)
    assert_likely(tree, 2)
