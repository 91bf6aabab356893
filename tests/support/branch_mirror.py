"""What a branch must be, told by decoding its path alone."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax.numpy as jnp
import numpy as np

from deft_jax import Branch, Sampling
from deft_jax.sampling.noise import ROOT_KEY, child_key
from tests.support.tiny_model import EOS, AsciiTokenizer, decode_alone, path_logprobs

LIMIT = 2e-4
"""Largest error of a log-probability."""


@dataclasses.dataclass
class Mirror:
    """A branch without an engine.

    Attributes:
        path: token ids of the whole path.
        start: how many of them came before the branch.
        key: its sampling key.
        children: forks and requests that it has had.
    """

    path: list[int]
    start: int
    key: int = ROOT_KEY
    children: int = 0

    @classmethod
    def of(cls, prompt: str) -> Self:
        ids = AsciiTokenizer().encode(prompt)
        return cls(ids, len(ids))

    def next_key(self) -> int:
        self.children += 1
        return host_key(self.key, self.children - 1)

    def fork(self) -> Self:
        return type(self)(list(self.path), len(self.path), self.next_key())

    def extend(self, text: str) -> None:
        self.path += AsciiTokenizer().encode(text)

    def generate(self, sampling: Sampling) -> str:
        """Decode behind the path; return why the text ended."""
        tokens, reason = generated(self.path, sampling, self.next_key())
        self.path += tokens
        return reason

    def leaves(self, sampling: Sampling, n: int) -> list[Self]:
        """Return what best of n gives."""
        key, base = self.next_key(), self.next_key()
        found = [generated(self.path, sampling, key, i)[0] for i in range(n)]
        start = len(self.path)
        return [
            type(self)(self.path + tokens, start, host_key(base, i))
            for i, tokens in enumerate(found)
        ]

    def check(self, branch: Branch) -> None:
        """Assert that a branch is the same."""
        own = self.path[self.start :]
        assert branch.path_tokens() == tuple(self.path)
        assert branch.tokens == tuple(own)
        decode = AsciiTokenizer().decode
        assert branch.text == decode(own, skip_special_tokens=True)
        expected = token_logprobs(self.path[: self.start], own)
        np.testing.assert_allclose(branch.token_logprobs, expected, atol=LIMIT)
        np.testing.assert_allclose(branch.logprob, sum(expected), atol=LIMIT * 50)


def host_key(parent: int, number: int) -> int:
    """Return a child's key as the device makes it."""
    return int(child_key(jnp.uint32(parent), jnp.int32(number)))


def generated(
    path: Sequence[int], sampling: Sampling, key: int, branch: int = 0
) -> tuple[list[int], str]:
    """Return what is generated behind a path up to what ends it, and why it ends."""
    alone = decode_alone(path, sampling, branch, key)
    tokens = list(alone.tokens)
    if alone.finish_reason != "stop":
        return tokens, "length"
    if tokens[-1] in EOS and not sampling.ignore_eos:
        return tokens[:-1], "stop"
    text = AsciiTokenizer().decode(tokens, skip_special_tokens=True)
    for _ in range(len(text) - len(alone.text)):
        while tokens.pop() in EOS:
            pass
    return tokens, "stop"


def token_logprobs(path: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Return the log-probability of each token behind a path, of dense attention."""
    rows = path_logprobs([*path, *tokens])
    return [float(rows[len(path) - 1 + i, token]) for i, token in enumerate(tokens)]
