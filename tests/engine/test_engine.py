"""Prompts in, trees out: what the engine accepts, return and refuses."""

import dataclasses
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.engine.engine import Engine
from deft_jax.errors import CapacityError, DeftError
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN, SelfConsistency, normalise_answer
from tests.support.tiny_model import (
    CAPACITY,
    CONFIG,
    AsciiTokenizer,
    decode_alone,
    tiny_engine,
)

GREEDY = Sampling(temperature=0.0, max_new_tokens=10)
PROMPT = "Hello world"
IDS = AsciiTokenizer().encode(PROMPT)


def test_a_tree_holds_the_prompt_and_its_branches():
    sampling = Sampling(max_new_tokens=10, seed=2)
    (tree,) = tiny_engine().generate(PROMPT, BestOfN(3), sampling)
    root, *branches = tree.nodes
    assert (tree.request, tree.prompt, tree.notice) == (0, PROMPT, None)
    assert (root.parent, root.tokens, root.text) == (None, tuple(IDS), PROMPT)
    assert root.finish_reason is None and root.logprobs == ()
    assert [node.parent for node in branches] == [root.id] * 3
    assert tree.leaves() == tuple(branches)
    for node in branches:
        text = AsciiTokenizer().decode(node.tokens, skip_special_tokens=True)
        assert node.text == tree.path_text(node) == text


def test_best_is_the_branch_with_the_highest_mean_logprob():
    sampling = Sampling(max_new_tokens=10, seed=2)
    (tree,) = tiny_engine().generate(PROMPT, BestOfN(4), sampling)
    means = [np.mean(leaf.logprobs) for leaf in tree.leaves()]
    assert tree.best() == tree.leaves()[int(np.argmax(means))]
    assert tree.answer is None and tree.votes == {}


def test_the_default_is_one_sampled_branch():
    (tree,) = tiny_engine().generate(PROMPT)
    assert [leaf.tokens for leaf in tree.leaves()] == [
        decode_alone(PROMPT, Sampling()).tokens
    ]


@pytest.mark.parametrize(
    "prompts",
    [
        PROMPT,
        [PROMPT],
        (text for text in [PROMPT]),
        IDS,
        tuple(IDS),
        [IDS],
        iter(IDS),
        [np.int64(token) for token in IDS],
        np.array(IDS),
        np.array([IDS]),
        [np.array(IDS, np.uint8)],
        jnp.array(IDS),
        jnp.array([IDS]),
        [jnp.array(IDS)],
        list(jnp.array(IDS)),
    ],
    ids=[
        *("text", "texts", "generator", "list", "tuple", "lists", "iterator"),
        *("numpy-scalars", "array", "array-2d", "arrays"),
        *("jax", "jax-2d", "jax-arrays", "jax-scalars"),
    ],
)
def test_prompts_may_be_text_or_token_ids(prompts):
    (tree,) = tiny_engine().generate(prompts, sampling=GREEDY)
    assert tree.prompt == PROMPT
    assert tree.best().tokens == decode_alone(PROMPT, GREEDY).tokens


def test_text_and_token_ids_mix_and_keep_their_order():
    trees = tiny_engine().generate(["x", IDS, "y"], sampling=GREEDY)
    assert [(tree.request, tree.prompt) for tree in trees] == [
        (0, "x"),
        (1, PROMPT),
        (2, "y"),
    ]


def test_the_context_bounds_what_is_generated():
    prompt = "x" * (CONFIG.context_length - 6)
    sampling = Sampling(max_new_tokens=50, ignore_eos=True)
    (tree,) = tiny_engine().generate(prompt, sampling=sampling)
    assert len(tree.best().tokens) == 6
    assert tree.best().finish_reason == "length"


def test_self_consistency_votes_over_what_was_generated():
    sampling = Sampling(max_new_tokens=3, ignore_eos=True, seed=8)
    strategy = SelfConsistency(7, pattern=r"(?s).(.)")
    (tree,) = tiny_engine().generate("x", strategy, sampling)
    answers = [normalise_answer(leaf.text[1:2]) for leaf in tree.leaves()]
    given = [answer for answer in answers if answer is not None]
    votes = Counter(given)
    assert [leaf.answer for leaf in tree.leaves()] == answers
    assert tree.votes == votes and 1 < len(votes) < 7
    assert tree.answer == tree.best().answer == votes.most_common()[0][0]
    assert tree.agreement == max(votes.values()) / len(given)


BAD_PROMPTS = {
    "prompt 0 has no tokens": "",
    "prompt 1 has no tokens": [[5], []],
    "expected at least 1 prompt, got none": [],
    "prompt 0 has token ids from 3 to 128; the vocabulary has 0 to 127": [3, 128],
    "prompt 0 has token ids from -1 to 5": [5, -1],
    "prompt 0 must be text or integer token ids, got \\[3, 1.5]": [3, 1.5],
    "prompt 0 must be text or integer token ids, got \\[None]": [None],
    "prompt 0 must be text or integer token ids, got \\[\\[5, 6]": [[[5, 6], [7, 8]]],
    "prompt 0 must be text or integer token ids, got \\[True": [True, False],
    "prompt 0 must be text or integer token ids, got \\[np.float64\\(1.5": np.array(
        [1.5]
    ),
    "prompt 0 must be text or integer token ids, got \\[np.float32\\(2.": jnp.array(
        [2.0]
    ),
    "prompt 0 must be text or integer token ids, got b'ab'": [b"ab"],
    "prompts must be text or integer token ids, got b'ab'": b"ab",
    "prompts must be text or integer token ids, got {5: 6}": {5: 6},
    "prompts must be text or integer token ids, got None": None,
    "prompts must be text or integer token ids, got 7": 7,
    "prompts must be text or integer token ids, got Array\\(7": jnp.array(7),
    "prompt 1 must be text or integer token ids, got None": ["a", None],
    "prompt 1 must be text or integer token ids, got 5": [[3], 5],
    "prompt 0 has 128 tokens; the model's context of 128 leaves no room": [7] * 128,
    "prompt 1 has 300 tokens; the model's context of 128": [[7], [7] * 300],
}


@pytest.mark.parametrize("message", BAD_PROMPTS)
def test_a_prompt_that_cannot_be_used_is_refused(message):
    with pytest.raises(DeftError, match=message) as error:
        tiny_engine().generate(BAD_PROMPTS[message])
    assert "\n" not in str(error.value)


BAD_VALUES = {
    "n must be at least 1 branch, got 0": lambda: BestOfN(0),
    "n must be an integer, got 2.5": lambda: BestOfN(2.5),  # type: ignore
    "n must be at least 1 branch, got -3": lambda: SelfConsistency(-3),
    r"the answer pattern '\(' is no regular expression": lambda: SelfConsistency(
        2, pattern="("
    ),
    "temperature must be finite and at least 0, got -1": lambda: Sampling(
        temperature=-1
    ),
    "strategy must be an object such as BestOfN\\(4\\), got 4": lambda: (
        tiny_engine().generate(PROMPT, 4)  # type: ignore
    ),
    "strategy must be an object such as BestOfN\\(4\\), got <class": lambda: (
        tiny_engine().generate(PROMPT, BestOfN)  # type: ignore
    ),
    "sampling must be a deft_jax.Sampling, got {'temperature': 1}": lambda: (
        tiny_engine().generate(PROMPT, sampling={"temperature": 1})  # type: ignore
    ),
    "capacity must be a deft_jax.Capacity, got 64": lambda: Engine(
        tiny_engine().model,
        AsciiTokenizer(),
        capacity=64,  # pyright: ignore[reportArgumentType]
    ),
    "capacity: page_size must be an integer, got 2.5": lambda: dataclasses.replace(
        CAPACITY, page_size=2.5
    ),
    "capacity: rows must be an integer, got True": lambda: dataclasses.replace(
        CAPACITY, rows=True
    ),
    "max_new_tokens must be from 1": lambda: Sampling(max_new_tokens=0),
    "a token of logit_bias must be from 0 to 127, got 128": lambda: (
        tiny_engine().generate(PROMPT, sampling=Sampling(logit_bias={128: 1.0}))
    ),
}


@pytest.mark.parametrize("message", BAD_VALUES)
def test_a_value_outside_its_limits_is_refused(message):
    with pytest.raises(DeftError, match=message) as error:
        BAD_VALUES[message]()
    assert "\n" not in str(error.value)


def test_a_request_that_cannot_start_is_refused():
    engine = tiny_engine()
    with pytest.raises(CapacityError, match="needs 17 rows to start, the engine has"):
        engine.generate(PROMPT, BestOfN(17))
    small = Engine(
        engine.model,
        engine.tokenizer,
        capacity=type(CAPACITY)(requests=1, rows=8, nodes=9, pages=4, page_size=8),
    )
    with pytest.raises(CapacityError, match="needs 5 pages of 8 tokens to start"):
        small.generate(PROMPT, BestOfN(3))


def test_a_refused_call_leaves_the_engine_usable():
    for prompts in ([], [3, 999], "x" * 200):
        with pytest.raises(DeftError):
            tiny_engine().generate(prompts)
    (tree,) = tiny_engine().generate(PROMPT, sampling=GREEDY)
    assert tree.best().tokens == decode_alone(PROMPT, GREEDY).tokens
