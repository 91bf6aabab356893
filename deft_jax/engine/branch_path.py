"""Tokens and text from a prompt down to the end of a branch."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

from deft_jax.engine.host_tree import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class BranchPath:
    """Where a branch stands: the whole path, and which part of it is the branch's own.

    A path is never changed; growing returns another one.

    Attributes:
        all_tokens: token ids from the prompt's first to the branch's last.
        all_text: the text of the path that is certain, the prompt's included.
        start: how many tokens of the path came before the branch.
        text_start: how many characters of the text did.
        logprobs: log-probability in nats of each of the branch's own tokens.
        stream: turns the tokens that follow into text; copied before each use.
    """

    all_tokens: tuple[int, ...]
    all_text: str
    start: int
    text_start: int
    logprobs: tuple[float, ...]
    stream: Any

    @classmethod
    def of_prompt(
        cls, tokenizer: Tokenizer, prompt: str | list[int], ids: list[int]
    ) -> Self:
        """Return the path of a prompt, of which nothing is the branch's own.

        Args:
            tokenizer: turns token ids into text.
            prompt: text or token ids.
            ids: its token ids.
        """
        is_text = isinstance(prompt, str)
        text = prompt if is_text else tokenizer.decode(ids, skip_special_tokens=False)
        return cls(
            all_tokens=tuple(ids),
            all_text=text,
            start=len(ids),
            text_start=len(text),
            logprobs=(),
            stream=tokenizer.stream(ids),
        )

    @property
    def tokens(self) -> tuple[int, ...]:
        """The branch's own token ids."""
        return self.all_tokens[self.start :]

    @property
    def text(self) -> str:
        """The branch's own text."""
        return self.all_text[self.text_start :]

    @property
    def logprob(self) -> float:
        """Sum of the log-probabilities of the branch's own tokens; 0 without any."""
        return math.fsum(self.logprobs)

    def forked(self) -> Self:
        """Return the same path as one of which nothing is the branch's own."""
        return dataclasses.replace(
            self,
            start=len(self.all_tokens),
            text_start=len(self.all_text),
            logprobs=(),
        )

    def grown(self, tokens: Sequence[int], logprobs: Sequence[float]) -> Self:
        """Return the path with tokens behind it.

        Args:
            tokens: token ids.
            logprobs: log-probability of each in nats.
        """
        stream = self.stream.copy()
        text = "".join([stream.push(token) for token in tokens])
        return dataclasses.replace(
            self,
            all_tokens=(*self.all_tokens, *tokens),
            all_text=self.all_text + text,
            logprobs=(*self.logprobs, *logprobs),
            stream=stream,
        )
