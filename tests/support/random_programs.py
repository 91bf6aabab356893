"""Random programs over branches, each checked against decoding its path alone."""

import random
from collections.abc import Sequence

import numpy as np

from deft_jax import BestOfN, Sampling, Session
from tests.support.branch_mirror import LIMIT, Mirror, token_logprobs
from tests.support.tiny_model import AsciiTokenizer


def run_program(
    dice: random.Random,
    session: Session,
    prompts: Sequence[str],
    *,
    steps: int,
    longest: int,
    most: int = 6,
) -> None:
    """Grow, fork, extend, score and drop branches in any order, and check them all.

    Args:
        dice: says what is done.
        session: whose branches they are.
        prompts: where they begin.
        steps: things that are done.
        longest: tokens of a path, prompt included, from which on it is left alone.
        most: branches at the same time.

    Raises:
        AssertionError: a branch is not what its sequence is.
    """
    pairs = [
        (branch, Mirror.of(prompt))
        for branch, prompt in zip(session.open_all(prompts), prompts, strict=True)
    ]
    for _ in range(steps):
        pairs = [pair for pair in pairs if len(pair[1].path) < longest]
        chosen = dice.sample(pairs, min(len(pairs), dice.randint(1, 3)))
        pairs += _do_something(dice, session, chosen)
        for branch, mirror in chosen:
            mirror.check(branch)
        while len(pairs) > most:
            pairs.pop(dice.randrange(len(pairs)))[0].drop()
    for branch, mirror in pairs:
        mirror.check(branch)


def _do_something(dice: random.Random, session: Session, pairs: list) -> list:
    """Do one thing with several branches, and the same with their mirrors."""
    group = session.group(branch for branch, _ in pairs)
    mirrors = [mirror for _, mirror in pairs]
    match dice.choice(["fork", "extend", "generate", "generate", "strategy", "score"]):
        case "fork":
            n = dice.randint(1, 2)
            made = [mirror.fork() for mirror in mirrors for _ in range(n)]
            return list(zip(group.fork(n), made, strict=True))
        case "extend":
            texts = [_random_text(dice) for _ in mirrors]
            group.extend(texts)
            for mirror, text in zip(mirrors, texts, strict=True):
                mirror.extend(text)
        case "generate":
            sampling = _random_sampling(dice)
            group.generate(sampling)
            reasons = [mirror.generate(sampling) for mirror in mirrors]
            assert group.finish_reason == reasons
        case "score":
            texts = [_random_text(dice) for _ in range(dice.randint(1, 3))]
            for scores, mirror in zip(group.score_tokens(texts), mirrors, strict=True):
                for found, text in zip(scores, texts, strict=True):
                    expected = token_logprobs(
                        mirror.path, AsciiTokenizer().encode(text)
                    )
                    np.testing.assert_allclose(found, expected, atol=LIMIT)
        case "strategy":
            sampling, n = _random_sampling(dice), dice.randint(1, 3)
            leaves = group.generate(sampling, strategy=BestOfN(n))
            made = [leaf for each in mirrors for leaf in each.leaves(sampling, n)]
            return list(zip(leaves, made, strict=True))
    return []


def _random_text(dice: random.Random) -> str:
    return "".join(chr(dice.randint(32, 126)) for _ in range(dice.randint(1, 9)))


def _random_sampling(dice: random.Random) -> Sampling:
    return Sampling(
        temperature=dice.choice([0.0, 0.8, 1.1]),
        top_k=dice.choice([0, 7]),
        seed=dice.randrange(2**32),
        max_new_tokens=dice.randint(1, 9),
        ignore_eos=dice.random() < 0.5,
        stop=tuple(_random_text(dice)[:1] for _ in range(dice.randint(0, 20))),
    )
