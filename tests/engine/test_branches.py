"""Programs over branches: each branch is what decoding its path alone gives."""

import random

import pytest

from deft_jax import BestOfN, Sampling
from tests.support.branch_mirror import Mirror
from tests.support.random_programs import run_program
from tests.support.tiny_model import sharing_engine

PROMPT = "The quick brown fox"
SETTINGS = {
    "greedy": Sampling(temperature=0.0, max_new_tokens=10),
    "seeded": Sampling(temperature=0.9, seed=5, max_new_tokens=10),
    "past_eos": Sampling(temperature=0.9, seed=6, max_new_tokens=10, ignore_eos=True),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_forks_grow_as_sequences_do(name: str):
    sampling = SETTINGS[name]
    with sharing_engine().session() as session:
        root, mirror = session.open(PROMPT), Mirror.of(PROMPT)
        first = root.fork(3).generate(sampling)
        below = first.fork(2).extend(" and: ").generate(sampling)
        mirrors = [mirror.fork() for _ in range(3)]
        reasons = [each.generate(sampling) for each in mirrors]
        assert first.finish_reason == reasons
        for branch, expected in zip(first, mirrors, strict=True):
            expected.check(branch)
        forks = [each.fork() for each in mirrors for _ in range(2)]
        for branch, expected in zip(below, forks, strict=True):
            expected.extend(" and: ")
            expected.generate(sampling)
            expected.check(branch)


def test_calls_of_a_branch_draw_different_tokens_and_a_second_run_the_same():
    def program() -> list[str]:
        with sharing_engine().session(sampling=SETTINGS["past_eos"]) as session:
            root = session.open(PROMPT)
            calls = [root.fork().generate().text for _ in range(2)]
            leaves = root.generate(strategy=BestOfN(2))
            return [*calls, *leaves.text, *leaves.generate(max_new_tokens=4).text]

    texts = program()
    assert len(set(texts)) == len(texts) == 6
    assert program() == texts


def test_leaves_of_a_strategy_are_branches():
    sampling = SETTINGS["seeded"]
    with sharing_engine().session(sampling=sampling) as session:
        root, mirror = session.open(PROMPT).extend("!"), Mirror.of(PROMPT)
        mirror.extend("!")
        leaves = root.generate(strategy=BestOfN(4))
        expected = mirror.leaves(sampling, 4)
        leaves.extend("?").generate()
        mirror.check(root)
        for leaf, each in zip(leaves, expected, strict=True):
            each.extend("?")
            each.generate(sampling)
            each.check(leaf)


def test_a_stop_string_is_no_part_of_a_branch():
    """Stop strings have two characters here, so two tokens."""
    open_end = Sampling(temperature=0.9, seed=8, max_new_tokens=16, ignore_eos=True)
    with sharing_engine().session() as session:
        root = session.open(PROMPT)
        [whole] = session.open(PROMPT).fork(1).generate(open_end)
        visible = [i for i, t in enumerate(whole.tokens[:-1]) if t > 5]
        at = next(i for i in visible[3:] if whole.tokens[i + 1] > 5)
        stop = "".join(map(chr, whole.tokens[at : at + 2]))
        assert whole.text.count(stop) == 1
        branch = root.fork().generate(open_end, stop=stop)
        assert branch.finish_reason == "stop" and branch.notice is None
        assert branch.tokens == whole.tokens[:at]
        assert branch.text == whole.text[: whole.text.index(stop)]
        branch.extend(stop)
        assert branch.finish_reason is None
        assert branch.text == whole.text[: whole.text.index(stop) + 2]
        mirror = Mirror.of(PROMPT).fork()
        mirror.path += whole.tokens[: at + 2]
        mirror.check(branch)


@pytest.mark.parametrize("seed", range(4))
def test_random_programs(seed: int):
    """Grow, fork, extend, score, drop in any order; every branch is its sequence."""
    dice = random.Random(seed)
    prompts = [f"{name} {PROMPT}"[: dice.randint(3, 20)] for name in "ab"]
    with sharing_engine().session() as session:
        run_program(dice, session, prompts, steps=12, longest=100)
