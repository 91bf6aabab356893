"""One branch of a live tree, as host programs use it."""

from collections.abc import Sequence
from typing import Any, overload

from deft_jax.engine.branch_group import LARGEST, BranchGroup
from deft_jax.engine.branch_growth import branching, chosen_sampling, generating
from deft_jax.engine.branch_reading import extending, looking, scoring
from deft_jax.engine.branch_scores import likeliest, totals
from deft_jax.engine.branch_state import BranchState
from deft_jax.engine.operation import Operation, run, run_async
from deft_jax.results.tree_node import FinishReason
from deft_jax.sampling.numbers import as_integer
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.protocol import Strategy

SHOWN = 40
"""Characters of a branch's text in its representation."""


class Branch:
    """A place in a tree that a program reads, forks and grows.

    `extend` and `generate` move the branch itself; whoever wants to come back forks it
    first, which costs nothing: what lies above a fork is stored once, and read once in
    each step for all that continue it. Names that begin with `a` are the same
    operations for coroutines; a task that is cancelled cancels its requests. While a
    branch grows, nothing else but `drop` can be asked of it.

    A branch keeps the KV of its path until it is dropped, until nobody refers to it, or
    until its session is closed.
    """

    def __init__(self, state: BranchState):
        """Wrap what the branch is on the host; `Session.open` makes branches."""
        self._state = state

    def __repr__(self) -> str:
        """Return the end of the branch's text, and how many tokens it has."""
        path = self.state.path
        dropped = ", dropped" if self.state.is_dropped else ""
        return f"Branch({path.text[-SHOWN:]!r}, {len(path.tokens)} tokens{dropped})"

    @property
    def state(self) -> BranchState:
        """What the branch is on the host."""
        return self._state

    @property
    def text(self) -> str:
        """What the branch was given or generated since it was opened or forked.

        Bytes of a character that is not complete are no text yet.
        """
        return self.state.path.text

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids that the branch was given or generated since it was forked."""
        return self.state.path.tokens

    @property
    def logprob(self) -> float:
        """Sum of the log-probabilities of `tokens` under the model, in nats."""
        return self.state.path.logprob

    @property
    def token_logprobs(self) -> tuple[float, ...]:
        """Log-probability of each of `tokens` under the model, in nats."""
        return self.state.path.logprobs

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the text that was generated last ended; None if something came after."""
        return self.state.finish_reason

    @property
    def notice(self) -> str | None:
        """One line about what ended that text early; None if nothing did."""
        return self.state.notice

    def path_text(self) -> str:
        """Return the text of the whole path, from the prompt's beginning on."""
        return self.state.path.all_text

    def path_tokens(self) -> tuple[int, ...]:
        """Return the token ids of the whole path, those of the prompt included."""
        return self.state.path.all_tokens

    @overload
    def fork(self) -> "Branch": ...
    @overload
    def fork(self, n: int) -> "BranchGroup[Branch]": ...
    def fork(self, n: int | None = None) -> "Branch | BranchGroup[Branch]":
        """Return children that begin where the branch stands.

        Args:
            n: how many; None for one that is no group.

        Raises:
            DeftError: the branch cannot be used, or n is no integer of at least 1.
        """
        if n is None:
            return Branch(self.state.fork())
        n = as_integer("n", n, 1, LARGEST)
        return BranchGroup([Branch(self.state.fork()) for _ in range(n)], Branch)

    def extend(self, text: str | Sequence[int]) -> "Branch":
        """Put text behind the branch; return the branch.

        The model reads it, and its log-probabilities count in `logprob`.

        Args:
            text: text, encoded on its own and without BOS, or token ids.

        Raises:
            DeftError: the branch cannot be used, or the text cannot be read.
        """
        run(extending([self.state], [text]))
        return self

    async def aextend(self, text: str | Sequence[int]) -> "Branch":
        """Await what `extend` does."""
        await run_async(extending([self.state], [text]))
        return self

    @overload
    def generate(
        self,
        sampling: Sampling | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        strategy: None = None,
    ) -> "Branch": ...
    @overload
    def generate(
        self,
        sampling: Sampling | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        strategy: Strategy,
    ) -> "BranchGroup[Branch]": ...
    def generate(
        self,
        sampling: Sampling | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        strategy: Strategy | None = None,
    ) -> "Branch | BranchGroup[Branch]":
        """Generate text behind the branch.

        The branch ends before what ended the text: neither a stop string nor an
        end-of-text token is part of it. Where a stop string begins within a token, the
        token is left out, and its text before the stop string is read as tokens of its
        own. Each call draws other tokens; the same program with the same seed draws the
        same ones again.

        Args:
            sampling: how tokens are chosen; that of the session by default.
            stop: strings that end the text, in place of those of the sampling.
            max_new_tokens: most tokens, in place of the number of the sampling.
            strategy: how a tree grows behind the branch; a single text by default.

        Returns:
            The branch. With a strategy the branch stays where it is, and a group of new
            branches, one for each leaf that was not pruned, is returned.

        Raises:
            DeftError: an argument or the branch cannot be used, or the request failed.
        """
        return run(self._generating(sampling, stop, max_new_tokens, strategy))

    @overload
    async def agenerate(
        self,
        sampling: Sampling | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        strategy: None = None,
    ) -> "Branch": ...
    @overload
    async def agenerate(
        self,
        sampling: Sampling | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        strategy: Strategy,
    ) -> "BranchGroup[Branch]": ...
    async def agenerate(
        self,
        sampling: Sampling | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        strategy: Strategy | None = None,
    ) -> "Branch | BranchGroup[Branch]":
        """Await what `generate` does."""
        operation = self._generating(sampling, stop, max_new_tokens, strategy)
        return await run_async(operation)

    def score(self, texts: Sequence[Any]) -> list[float]:
        """Return the log-probability in nats of each text behind the branch.

        It is the sum over the text's tokens; the branch stays as it is.

        Args:
            texts: text or token ids, each of at least one token.

        Raises:
            DeftError: the branch cannot be used, or a text cannot be read.
        """
        return totals(self.score_tokens(texts))

    async def ascore(self, texts: Sequence[Any]) -> list[float]:
        """Await what `score` does."""
        return totals(await self.ascore_tokens(texts))

    def score_tokens(self, texts: Sequence[Any]) -> list[tuple[float, ...]]:
        """Return what `score` sums up: a log-probability for each token of each text.

        Raises:
            DeftError: the branch cannot be used, or a text cannot be read.
        """
        return run(scoring([self.state], texts))[0]

    async def ascore_tokens(self, texts: Sequence[Any]) -> list[tuple[float, ...]]:
        """Await what `score_tokens` does."""
        return (await run_async(scoring([self.state], texts)))[0]

    def choose(self, texts: Sequence[Any], *, mean: bool = False) -> int:
        """Return the index of the text that is most likely behind the branch.

        The branch stays as it is. Of texts that are as likely the first one is chosen.

        Args:
            texts: text or token ids, at least one.
            mean: true to compare log-probabilities per token, so that long texts have a
                chance against short ones.

        Raises:
            DeftError: the branch cannot be used, or there is no text.
        """
        return likeliest(self.score_tokens(texts), mean=mean)

    async def achoose(self, texts: Sequence[Any], *, mean: bool = False) -> int:
        """Await what `choose` does."""
        return likeliest(await self.ascore_tokens(texts), mean=mean)

    def logprobs(self, top: int = 5) -> tuple[tuple[int, float], ...]:
        """Return the most likely next tokens with their log-probabilities, best first.

        Args:
            top: how many.

        Raises:
            DeftError: the branch cannot be used, or top is no integer of at least 1.
        """
        return run(looking([self.state], as_integer("top", top, 1, LARGEST)))[0]

    async def alogprobs(self, top: int = 5) -> tuple[tuple[int, float], ...]:
        """Await what `logprobs` does."""
        top = as_integer("top", top, 1, LARGEST)
        return (await run_async(looking([self.state], top)))[0]

    def drop(self) -> None:
        """Let go of the branch, which cannot be used any more.

        Its forks stay. What makes the branch grow is cancelled.
        """
        self.state.drop()

    def _generating(
        self,
        sampling: Sampling | None,
        stop: str | Sequence[str] | None,
        max_new_tokens: int | None,
        strategy: Strategy | None,
    ) -> "Operation[Any]":
        sampling = chosen_sampling(self.state.session, sampling, stop, max_new_tokens)
        if strategy is None:
            yield from generating([self.state], sampling)
            return self
        states = yield from branching([self.state], strategy, sampling)
        return BranchGroup([Branch(state) for state in states], Branch)
