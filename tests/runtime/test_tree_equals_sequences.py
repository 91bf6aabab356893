"""Every branch of a tree is what decoding its path alone gives, token for token."""

import dataclasses

import numpy as np
import pytest

from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from tests.support.tiny_model import CAPACITY, EOS, decode_alone, tiny_engine

PROMPTS = [
    "x",
    "Hello world",
    "A prompt that neither fits in one chunk of prompt tokens nor in two",
    "12345678",
    "The quick brown fox jumps over it.",
]
"""More than fit at once; one fills a page to the last slot, one takes three chunks."""

SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "greedy_penalty": Sampling(temperature=0.0, repetition_penalty=1.8),
    "greedy_bias": Sampling(temperature=0.0, logit_bias={0: 6.0, 77: -9.0}),
    "sampled": Sampling(temperature=0.9, seed=7),
    "top_k": Sampling(temperature=0.9, top_k=5, seed=8),
    "top_p": Sampling(temperature=0.9, top_p=0.6, seed=9),
    "min_p": Sampling(temperature=0.9, min_p=0.2, seed=10),
    "past_eos": Sampling(temperature=0.9, ignore_eos=True, seed=11),
    "everything": Sampling(
        temperature=0.9,
        top_k=40,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.3,
        logit_bias={2: 3.0, 60: 4.0, 61: -100.0},
        seed=2**32 - 1,
    ),
}


def generate(prompts, n, sampling):
    """Return the leaves of each prompt's tree."""
    trees = tiny_engine().generate(prompts, BestOfN(n), sampling)
    return [tree.leaves() for tree in trees]


def with_length(sampling, max_new_tokens=24):
    return Sampling(**{**vars(sampling), "max_new_tokens": max_new_tokens})


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("name", SETTINGS)
def test_branches_equal_sequences(name, n):
    sampling = with_length(SETTINGS[name])
    for prompt, leaves in zip(PROMPTS, generate(PROMPTS, n, sampling), strict=True):
        assert len(leaves) == n
        for stream, leaf in enumerate(leaves):
            alone = decode_alone(prompt, sampling, stream)
            assert leaf.tokens == alone.tokens
            assert leaf.finish_reason == alone.finish_reason
            np.testing.assert_allclose(leaf.logprobs, alone.logprobs, atol=2e-4)


def test_the_settings_make_a_difference():
    """Otherwise the comparison above would not see them."""
    texts = {
        tuple(leaf.tokens for leaf in generate(PROMPTS[1], 3, with_length(s))[0])
        for s in SETTINGS.values()
    }
    assert len(texts) == len(SETTINGS)


def test_some_branches_end_early_and_others_are_cut():
    leaves = generate(PROMPTS, 5, with_length(SETTINGS["sampled"]))
    reasons = [leaf.finish_reason for branches in leaves for leaf in branches]
    assert {"stop", "length"} == set(reasons)
    assert all(
        leaf.tokens[-1] in EOS
        for branches in leaves
        for leaf in branches
        if leaf.finish_reason == "stop"
    )


def texts(prompts, n, seed=4):
    """Return the texts of each prompt's branches."""
    sampling = Sampling(temperature=0.9, max_new_tokens=20, seed=seed)
    return [[leaf.text for leaf in leaves] for leaves in generate(prompts, n, sampling)]


def test_text_depends_on_nothing_else_in_the_batch():
    together = texts(PROMPTS, 3)
    assert texts(PROMPTS[::-1], 3) == together[::-1]
    assert [texts([prompt], 3)[0] for prompt in PROMPTS] == together
    assert [branches[:3] for branches in texts(PROMPTS, 5)] == together
    assert [branches[:1] for branches in together] == texts(PROMPTS, 1)


def test_equal_prompts_give_equal_trees_and_unequal_branches():
    first, second = texts([PROMPTS[1]] * 2, 4)
    assert first == second
    assert len(set(first)) == 4


def test_another_seed_gives_other_text():
    one, two = (texts(PROMPTS, 5, seed=seed) for seed in (4, 6))
    assert all(a != b for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("n", [1, 3])
def test_stop_strings_end_branches_across_tokens(n):
    """Stop strings are two characters, so two tokens, and there are many requests.

    Branches that end by a stop string, by end of text and by length free their nodes,
    which others use again.
    """
    sampling = Sampling(temperature=0.9, max_new_tokens=24, top_p=0.9, seed=4)
    prompts = [f"{name} {prompt}" for name in "abcd" for prompt in PROMPTS]
    texts = [decode_alone(prompt, sampling).text for prompt in prompts[::3]]
    stop = tuple(text[4:6] for text in texts if len(text) > 5)
    sampling = dataclasses.replace(sampling, stop=stop)
    reasons = []
    for prompt, leaves in zip(prompts, generate(prompts, n, sampling), strict=True):
        for stream, leaf in enumerate(leaves):
            alone = decode_alone(prompt, sampling, stream)
            assert (leaf.tokens, leaf.text) == (alone.tokens, alone.text)
            assert leaf.finish_reason == alone.finish_reason
            ended = leaf.tokens[-1] in EOS
            reasons.append("end of text" if ended else leaf.finish_reason)
    assert {"stop", "length", "end of text"} == set(reasons)


def test_a_node_that_a_stop_string_ended_may_hold_the_next_prompt():
    """The stop string and the last token come in one burst of steps.

    The device frees the branch before the host can, and the waiting prompt takes its
    node.
    """
    sampling = Sampling(temperature=0.9, max_new_tokens=9, ignore_eos=True, seed=5)
    stop = decode_alone(PROMPTS[3], sampling).text[5:7]
    sampling = Sampling(**{**vars(sampling), "stop": (stop,)})
    prompts = [PROMPTS[3]] * CAPACITY.requests + [PROMPTS[1]]
    leaves = [branches[0] for branches in generate(prompts, 1, sampling)]
    alone = [decode_alone(prompt, sampling) for prompt in prompts]
    assert [leaf.tokens for leaf in leaves] == [text.tokens for text in alone]
    assert len(leaves[0].tokens) == 7 and len(leaves[-1].tokens) == 9
