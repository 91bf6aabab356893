"""What sessions and their branches ask of the engine below them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from deft_jax.engine.handle import RequestHandle
from deft_jax.engine.host_tree import Tokenizer
from deft_jax.engine.prompts import Prompt
from deft_jax.engine.reading import Reading
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TokenEvent
from deft_jax.runtime.forward import Model
from deft_jax.sampling.noise import ROOT_KEY
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.protocol import Strategy


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
    ) -> RequestHandle[GenerationTree]:
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
    ) -> RequestHandle[Reading]:
        """Begin to feed a prompt that nothing is generated for."""
        ...

    def unpin(self, pin: Any) -> None:
        """Let go of the KV that a pin keeps; from any thread."""
        ...
