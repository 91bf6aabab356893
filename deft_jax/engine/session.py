"""A session: programs over branches of trees that live on the device."""

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from deft_jax.engine.branch import Branch
from deft_jax.engine.branch_engine import BranchEngine
from deft_jax.engine.branch_group import BranchGroup
from deft_jax.engine.branch_reading import opening, reading_texts
from deft_jax.engine.branch_scores import totals
from deft_jax.engine.handle import RequestHandle
from deft_jax.engine.operation import run, run_async
from deft_jax.engine.prompts import Prompt, list_prompts
from deft_jax.engine.session_state import SessionState
from deft_jax.errors import DeftError
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TokenEvent
from deft_jax.sampling.noise import ROOT_KEY
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.protocol import Strategy


class Session:
    """Opens branches, and ends with all that it has begun.

    What is asked by many branches, threads or coroutines, of this session or of others
    of the same engine, runs in the same steps. Names that begin with `a` are the same
    operations for coroutines. A session is a context manager, in `with` and in
    `async with`; its end cancels what runs and drops its branches.
    """

    def __init__(
        self,
        engine: BranchEngine,
        *,
        sampling: Sampling | None = None,
        priority: int = 0,
    ):
        """Begin a session; `Engine.session` does it.

        Args:
            engine: runs the requests.
            sampling: how tokens are chosen where an operation does not say.
            priority: priority of all requests; higher ones go first.

        Raises:
            DeftError: an argument is of the wrong type.
        """
        sampling = Sampling() if sampling is None else sampling
        if not isinstance(sampling, Sampling):
            raise DeftError(
                f"sampling must be a deft_jax.Sampling, got {sampling!r:.60}"
            )
        self._state = SessionState(engine, sampling, priority)

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()

    async def __aenter__(self) -> Self:
        """Return the session."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()

    def open(self, prompt: Prompt) -> Branch:
        """Read a prompt, and return a branch at its end.

        What the engine has read before is not read again. The prompt is part of the
        branch's path, not of its own text.

        Args:
            prompt: text, encoded as it stands, or token ids.

        Raises:
            DeftError: the prompt cannot be read, or the session is closed.
        """
        return self.open_all([prompt])[0]

    async def aopen(self, prompt: Prompt) -> Branch:
        """Await what `open` does."""
        return (await self.aopen_all([prompt]))[0]

    def open_all(self, prompts: Sequence[Prompt]) -> BranchGroup[Branch]:
        """Read several prompts together, and return a branch at the end of each.

        Raises:
            DeftError: a prompt cannot be read, or the session is closed.
        """
        states = run(opening(self._state, list_prompts(prompts)))
        return BranchGroup(map(Branch, states), Branch)

    async def aopen_all(self, prompts: Sequence[Prompt]) -> BranchGroup[Branch]:
        """Await what `open_all` does."""
        states = await run_async(opening(self._state, list_prompts(prompts)))
        return BranchGroup(map(Branch, states), Branch)

    def group(self, branches: Iterable[Branch]) -> BranchGroup[Branch]:
        """Return a group of branches of this session, in their order.

        Raises:
            DeftError: a branch is there twice, or is one of another session.
        """
        members = list(branches)
        states = [branch.state for branch in members]
        if len(set(map(id, states))) < len(states):
            raise DeftError("a branch is twice in the group; fork it instead")
        if any(state.session is not self._state for state in states):
            raise DeftError("expected branches of this session, got one of another")
        return BranchGroup(members, Branch)

    def score(self, prompts: Prompt | Sequence[Prompt]) -> list[float]:
        """Return the log-probability in nats of each text.

        It is the sum over all tokens but the first, each given those before it.

        Args:
            prompts: one text or several, as text or as token ids.

        Raises:
            DeftError: a text cannot be read, or the session is closed.
        """
        return totals(self.score_tokens(prompts))

    async def ascore(self, prompts: Prompt | Sequence[Prompt]) -> list[float]:
        """Await what `score` does."""
        return totals(await self.ascore_tokens(prompts))

    def score_tokens(
        self, prompts: Prompt | Sequence[Prompt]
    ) -> list[tuple[float, ...]]:
        """Return what `score` sums up: a log-probability for each token but the first.

        Raises:
            DeftError: a text cannot be read, or the session is closed.
        """
        return run(reading_texts(self._state, list_prompts(prompts)))

    async def ascore_tokens(
        self, prompts: Prompt | Sequence[Prompt]
    ) -> list[tuple[float, ...]]:
        """Await what `score_tokens` does."""
        return await run_async(reading_texts(self._state, list_prompts(prompts)))

    def submit(
        self,
        prompt: Prompt,
        strategy: Strategy | None = None,
        sampling: Sampling | None = None,
        *,
        key: int = ROOT_KEY,
        on_token: Callable[[TokenEvent], None] | None = None,
    ) -> RequestHandle[GenerationTree]:
        """Begin to grow a tree from a prompt, which the end of the session cancels.

        Args:
            prompt: text, encoded as it stands, or token ids.
            strategy: how the tree grows; one branch by default.
            sampling: how tokens are chosen; that of the session by default.
            key: sampling key of the root, 0 to 2**32 - 1.
            on_token: called for every token, on the thread that drives the engine.

        Returns:
            The handle of the request, to wait for, to await or to iterate over.

        Raises:
            DeftError: the engine refuses the request, or the session is closed.
        """
        state = self._state

        def begin() -> RequestHandle[Any]:
            return state.engine.submit(
                prompt,
                strategy,
                state.sampling if sampling is None else sampling,
                key=key,
                priority=state.priority,
                on_token=on_token,
            )

        return state.begin(begin)

    def close(self) -> None:
        """Cancel what runs, and drop all branches; a second time does nothing."""
        self._state.close()
