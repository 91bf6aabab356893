"""Scores and choices of branches, against dense attention in float32."""

import math

import numpy as np
import pytest

from deft_jax import DeftError, Sampling
from deft_jax.engine.branch_scores import likeliest, ranking
from tests.support.branch_mirror import LIMIT, token_logprobs
from tests.support.tiny_model import AsciiTokenizer, path_logprobs, sharing_engine

PROMPT = "Is it promising?"
TEXTS = ["sure", "likely", "impossible", "s", " it is ~"]
encode = AsciiTokenizer().encode


@pytest.fixture
def session():
    with sharing_engine().session(sampling=Sampling(temperature=0.0)) as session:
        yield session


def test_texts_have_the_probabilities_of_the_network(session):
    root = session.open(PROMPT)
    forks = root.fork(2).extend([" A", " Bee"])
    for group, before in [(forks, [" A", " Bee"]), (root.fork(1), [""])]:
        by_token, sums = group.score_tokens(TEXTS), group.score(TEXTS)
        for added, tokens, total in zip(before, by_token, sums, strict=True):
            path = encode(PROMPT + added)
            for text, found, one in zip(TEXTS, tokens, total, strict=True):
                expected = token_logprobs(path, encode(text))
                np.testing.assert_allclose(found, expected, atol=LIMIT)
                # What is cached by now changes which tokens are computed together,
                # and so the rounding.
                assert one == pytest.approx(math.fsum(expected), abs=LIMIT)
    first, again = root.score_tokens(TEXTS), root.fork().score_tokens(TEXTS)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_allclose(one, other, atol=LIMIT)
    sums = [math.fsum(one) for one in first]
    np.testing.assert_allclose(root.score(TEXTS), sums, atol=LIMIT)
    by_ids = root.score([encode("sure")])
    np.testing.assert_allclose(by_ids, root.score(["sure"]), atol=LIMIT)
    assert root.score([]) == []


def test_what_scores_are_read_of_stays_as_it_is(session):
    branch = session.open(PROMPT).fork().extend(" yes")
    before = (branch.path_tokens(), branch.token_logprobs, branch.text)
    for ask in (branch.score, branch.choose):
        ask(TEXTS)
    branch.logprobs()
    assert (branch.path_tokens(), branch.token_logprobs, branch.text) == before
    drawn = Sampling(temperature=0.9, seed=1, max_new_tokens=8)
    other = session.open(PROMPT).fork().extend(" yes")
    assert branch.generate(drawn).tokens == other.generate(drawn).tokens


def test_the_most_likely_text_is_chosen(session):
    root = session.open(PROMPT)
    branches = root.fork(6).extend([" a", " b", " c", " d", " e", " f"])
    for texts in (TEXTS, TEXTS[::-1], list("abcdefgh")):
        sums = branches.score(texts)
        assert branches.choose(texts) == [int(np.argmax(each)) for each in sums]
        sizes = [len(text) for text in texts]
        means = [int(np.argmax(np.divide(each, sizes))) for each in sums]
        assert branches.choose(texts, mean=True) == means
    chosen = branches.choose(list("abcdefgh"))
    assert len(set(chosen)) > 1
    assert branches[0].choose(list("abcdefgh")) == chosen[0]
    assert root.choose(["x", "x"]) == 0


def test_the_most_likely_next_tokens(session):
    root = session.open(PROMPT)
    for branch in (root, root.fork().extend(" ok")):
        expected = path_logprobs(branch.path_tokens())[-1]
        order = np.argsort(-expected)[:7]
        tokens, logprobs = zip(*branch.logprobs(7), strict=True)
        assert list(tokens) == order.tolist()
        np.testing.assert_allclose(logprobs, expected[order], atol=LIMIT)
        assert branch.fork(2).logprobs(7) == [branch.logprobs(7)] * 2
    assert len(root.logprobs()) == 5
    [(token, logprob), *_] = root.logprobs()
    grown = root.fork().generate(max_new_tokens=1, sampling=Sampling(temperature=0.0))
    if token > 5:
        assert grown.tokens == (token,)
        assert grown.logprob == pytest.approx(logprob, abs=LIMIT)


def test_whole_texts_are_scored_but_for_their_first_token(session):
    texts = ["The quick brown fox", "x", "jumps over", encode("it.")]
    by_token = session.score_tokens(texts)
    for text, found in zip(texts, by_token, strict=True):
        ids = encode(text) if isinstance(text, str) else text
        expected = token_logprobs(ids[:1], ids[1:])
        np.testing.assert_allclose(found, expected, atol=LIMIT)
    assert by_token[1] == ()
    assert session.score(texts) == [math.fsum(each) for each in by_token]
    assert session.score(texts[0]) == session.score(texts)[:1]


def test_the_best_are_kept_and_the_others_dropped(session):
    group = session.open(PROMPT).fork(5)
    branches = list(group)
    kept = group.keep([2, 0, 1, 0, 9], 3)
    assert list(kept) == [branches[1], branches[3], branches[2]]
    for dropped in (branches[0], branches[4]):
        with pytest.raises(DeftError, match="the branch was dropped"):
            dropped.fork()
    assert list(kept.keep([-3.5, -1.0, -2.0], 2, highest=True)) == [
        branches[3],
        branches[2],
    ]
    assert len(kept[1:].keep([1, 2], 9)) == 2


def test_rankings():
    assert ranking([2, 0, 1, 0], 4, highest=False) == [1, 3, 2, 0]
    assert ranking([2, 0, 1, 0], 4, highest=True) == [0, 2, 1, 3]
    assert ranking(np.array([1.5, -2.0]), 2, highest=False) == [1, 0]
    assert ranking([-math.inf, 0.0], 2, highest=True) == [1, 0]
    with pytest.raises(DeftError, match="a score for each of 3, got 2"):
        ranking([1, 2], 3, highest=False)
    with pytest.raises(DeftError, match="scores must be numbers, got NaN"):
        ranking([1, math.nan], 2, highest=False)
    with pytest.raises(DeftError, match="scores must be numbers, got 'ab'"):
        ranking("ab", 2, highest=False)


def test_the_likeliest():
    assert likeliest([(-1.0, -1.0), (-1.5,)], mean=False) == 1
    assert likeliest([(-1.0, -1.0), (-1.5,)], mean=True) == 0
    assert likeliest([(-2.0,), (-1.0, -1.0)], mean=False) == 0
    with pytest.raises(DeftError, match="at least 1 text to choose from, got none"):
        likeliest([], mean=False)
    with pytest.raises(DeftError, match="NaN; check the model's weights"):
        likeliest([(math.nan,), (-1.0,)], mean=False)
