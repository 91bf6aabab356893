"""Several branches, which do everything together."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, overload

from deft_jax.engine.branch_growth import branching, chosen_sampling, generating
from deft_jax.engine.branch_reading import extending, looking, scoring
from deft_jax.engine.branch_scores import likeliest, ranking, totals
from deft_jax.engine.branch_state import BranchState
from deft_jax.engine.operation import Operation, run, run_async
from deft_jax.errors import DeftError
from deft_jax.results.tree_node import FinishReason
from deft_jax.sampling.numbers import as_integer
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.protocol import Strategy

LARGEST = 2**31 - 1
"""Largest number that a caller may ask for, of branches or of tokens."""


class Member(Protocol):
    """A branch, as a group knows it."""

    @property
    def state(self) -> BranchState:
        """What the branch is on the host."""
        ...


class BranchGroup[B: Member](Sequence[B]):
    """Branches in an order, whose requests run in the same steps of the engine.

    Each operation is that of `Branch`, on every branch. All requests are begun before
    any is waited for. If one of them fails, the others are cancelled, no branch of the
    group moves, and the error is raised. Names that begin with `a` are the same
    operations for coroutines.
    """

    def __init__(self, branches: Iterable[B], make: Callable[[BranchState], B]):
        """Make a group; `Session.group` does it for branches that exist already.

        Args:
            branches: the branches, each once.
            make: makes a branch of its state.
        """
        self._branches = tuple(branches)
        self._make = make

    def __len__(self) -> int:
        """Return the number of branches."""
        return len(self._branches)

    @overload
    def __getitem__(self, index: int) -> B: ...
    @overload
    def __getitem__(self, index: slice) -> "BranchGroup[B]": ...
    def __getitem__(self, index: int | slice) -> "B | BranchGroup[B]":
        """Return a branch, or for a slice the group of some."""
        if isinstance(index, slice):
            return self._of(self._branches[index])
        return self._branches[index]

    def __repr__(self) -> str:
        """Return the representations of the branches."""
        return f"BranchGroup({list(self._branches)!r})"

    @property
    def text(self) -> list[str]:
        """Each branch's own text."""
        return [state.path.text for state in self._states]

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        """Each branch's own token ids."""
        return [state.path.tokens for state in self._states]

    @property
    def logprob(self) -> list[float]:
        """Each branch's sum of the log-probabilities of its own tokens, in nats."""
        return [state.path.logprob for state in self._states]

    @property
    def finish_reason(self) -> list[FinishReason | None]:
        """Why the text that each branch generated last ended."""
        return [state.finish_reason for state in self._states]

    def path_text(self) -> list[str]:
        """Return the text of each path, from the prompt's beginning on."""
        return [state.path.all_text for state in self._states]

    def fork(self, n: int = 1) -> "BranchGroup[B]":
        """Return `n` children of each branch, those of the first branch first.

        Raises:
            DeftError: a branch cannot be used, or n is no integer of at least 1.
        """
        n = as_integer("n", n, 1, LARGEST)
        return self._made([state.fork() for state in self._states for _ in range(n)])

    def extend(self, text: Any) -> "BranchGroup[B]":
        """Put text behind the branches; return the group.

        Args:
            text: text or token ids for all of them; or a sequence with text or token
                ids for each.

        Raises:
            DeftError: a branch cannot be used, or a text cannot be read.
        """
        run(extending(self._states, self._for_each(text)))
        return self

    async def aextend(self, text: Any) -> "BranchGroup[B]":
        """Await what `extend` does."""
        await run_async(extending(self._states, self._for_each(text)))
        return self

    def generate(
        self,
        sampling: Sampling | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        strategy: Strategy | None = None,
    ) -> "BranchGroup[B]":
        """Generate text behind the branches.

        The arguments are those of `Branch.generate`.

        Returns:
            The group; with a strategy a group of all leaves, those of the first branch
            first.

        Raises:
            DeftError: an argument or a branch cannot be used, or a request failed.
        """
        return run(self._generating(sampling, stop, max_new_tokens, strategy))

    async def agenerate(
        self,
        sampling: Sampling | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        strategy: Strategy | None = None,
    ) -> "BranchGroup[B]":
        """Await what `generate` does."""
        operation = self._generating(sampling, stop, max_new_tokens, strategy)
        return await run_async(operation)

    def score(self, texts: Sequence[Any]) -> list[list[float]]:
        """Return for each branch the log-probability of each text behind it.

        Raises:
            DeftError: a branch cannot be used, or a text cannot be read.
        """
        return [totals(scores) for scores in self.score_tokens(texts)]

    async def ascore(self, texts: Sequence[Any]) -> list[list[float]]:
        """Await what `score` does."""
        return [totals(scores) for scores in await self.ascore_tokens(texts)]

    def score_tokens(self, texts: Sequence[Any]) -> list[list[tuple[float, ...]]]:
        """Return what `score` sums up: a log-probability for each token of each text.

        Raises:
            DeftError: a branch cannot be used, or a text cannot be read.
        """
        return run(scoring(self._states, texts))

    async def ascore_tokens(
        self, texts: Sequence[Any]
    ) -> list[list[tuple[float, ...]]]:
        """Await what `score_tokens` does."""
        return await run_async(scoring(self._states, texts))

    def choose(self, texts: Sequence[Any], *, mean: bool = False) -> list[int]:
        """Return for each branch the index of the most likely text behind it.

        Raises:
            DeftError: a branch cannot be used, or there is no text.
        """
        return [likeliest(each, mean=mean) for each in self.score_tokens(texts)]

    async def achoose(self, texts: Sequence[Any], *, mean: bool = False) -> list[int]:
        """Await what `choose` does."""
        return [likeliest(each, mean=mean) for each in await self.ascore_tokens(texts)]

    def logprobs(self, top: int = 5) -> list[tuple[tuple[int, float], ...]]:
        """Return for each branch the most likely next tokens, best first.

        Raises:
            DeftError: a branch cannot be used, or top is no integer of at least 1.
        """
        return run(looking(self._states, as_integer("top", top, 1, LARGEST)))

    async def alogprobs(self, top: int = 5) -> list[tuple[tuple[int, float], ...]]:
        """Await what `logprobs` does."""
        top = as_integer("top", top, 1, LARGEST)
        return await run_async(looking(self._states, top))

    def keep(
        self, scores: Iterable[float], n: int, *, highest: bool = False
    ) -> "BranchGroup[B]":
        """Keep the best branches and drop the others.

        Args:
            scores: a number for each branch, such as an index that `choose` gave: the
                lowest is the best.
            n: how many branches to keep; all if there are no more.
            highest: true if the highest score is the best, as of log-probabilities.

        Returns:
            The branches that are kept, the best first; equal ones keep their order.

        Raises:
            DeftError: a score is no number, or their count is not that of the branches.
        """
        n = as_integer("n", n, 0, LARGEST)
        order = ranking(scores, len(self), highest=highest)
        for index in order[n:]:
            self._states[index].drop()
        return self._of([self._branches[index] for index in order[:n]])

    def drop(self) -> None:
        """Let go of all branches; they cannot be used any more."""
        for state in self._states:
            state.drop()

    @property
    def _states(self) -> list[BranchState]:
        return [branch.state for branch in self._branches]

    def _of(self, branches: Iterable[B]) -> "BranchGroup[B]":
        return BranchGroup(branches, self._make)

    def _made(self, states: Iterable[BranchState]) -> "BranchGroup[B]":
        return self._of([self._make(state) for state in states])

    def _for_each(self, text: Any) -> Sequence[Any]:
        """Return the text or the token ids for each branch."""
        if isinstance(text, str) or not hasattr(text, "__iter__"):
            return [text] * len(self)
        items = list(text)
        if not any(isinstance(x, str) or hasattr(x, "__len__") for x in items):
            return [items] * len(self)
        if len(items) != len(self):
            raise DeftError(
                f"expected one text or one for each of {len(self)} branches, got "
                f"{len(items)}"
            )
        return items

    def _generating(
        self,
        sampling: Sampling | None,
        stop: str | Sequence[str] | None,
        max_new_tokens: int | None,
        strategy: Strategy | None,
    ) -> "Operation[BranchGroup[B]]":
        states = self._states
        if not states:
            return self
        session = states[0].session
        sampling = chosen_sampling(session, sampling, stop, max_new_tokens)
        if strategy is not None:
            return self._made((yield from branching(states, strategy, sampling)))
        yield from generating(states, sampling)
        return self
