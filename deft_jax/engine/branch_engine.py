"""What sessions and their branches ask of the engine below them."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from deft_jax.engine.host_tree import Tokenizer
from deft_jax.engine.prompts import Prompt
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TokenEvent
from deft_jax.runtime.forward import Model
from deft_jax.sampling.noise import ROOT_KEY
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.protocol import Strategy


class Handle[T](Protocol):
    """A request that runs, and what comes of it."""

    @property
    def pin(self) -> object | None:
        """What keeps the KV of the request's path; valid once the request is done."""
        ...

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result, for so many seconds at most."""
        ...

    def cancel(self) -> Any:
        """End the request where it stands."""
        ...

    def done(self) -> bool:
        """Say whether there is a result."""
        ...

    def add_done_callback(self, call: Callable[[Any], None], /) -> None:
        """Have a function called with the handle once there is a result."""
        ...

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the result on an event loop."""
        ...


class Reading(Protocol):
    """What was read of a prompt.

    Attributes:
        logprobs: log-probability in nats of each token that was to be scored, given
            all before it.
        top: the most likely next tokens with their log-probabilities, best first.
    """

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log-probabilities of the tokens that were to be scored."""
        ...

    @property
    def top(self) -> tuple[tuple[int, float], ...]:
        """The most likely next tokens, best first."""
        ...


class BranchEngine(Protocol):
    """An engine whose requests run together, such as a `deft_jax.Engine`."""

    @property
    def model(self) -> Model:
        """The network, whose configuration says which tokens there are."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Turns text into token ids and back."""
        ...

    def submit(
        self,
        prompt: Prompt,
        strategy: Strategy | None = None,
        sampling: Sampling | None = None,
        *,
        key: int = ROOT_KEY,
        priority: int = 0,
        on_token: Callable[[TokenEvent], None] | None = None,
        pin: bool = False,
    ) -> Handle[GenerationTree]:
        """Begin to grow a tree from a prompt."""
        ...

    def read(
        self,
        prompt: Sequence[int],
        *,
        score_from: int | None = None,
        top: int = 0,
        priority: int = 0,
        pin: bool = False,
    ) -> Handle[Reading]:
        """Begin to feed a prompt that nothing is generated for."""
        ...

    def unpin(self, pin: Any) -> None:
        """Let go of the KV that a pin keeps; from any thread."""
        ...
