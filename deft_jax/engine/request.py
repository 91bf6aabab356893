"""What is asked of the engine for one prompt, and what it needs."""

import dataclasses

from deft_jax.capacity import Capacity
from deft_jax.errors import CapacityError
from deft_jax.sampling.noise import ROOT_KEY
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.protocol import Strategy
from deft_jax.strategies.traits import footprint_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt, and what is to become of it.

    Attributes:
        index: number of the prompt in its call.
        prompt: token ids.
        text: the prompt's text.
        limit: tokens a branch may have; the context may leave fewer than asked for.
        sampling: how tokens are chosen and when branches end.
        strategy: how the tree grows; None to feed the prompt and generate nothing.
        key: sampling key of the root, a uint32.
        priority: requests of higher priority start first, and are preempted last.
        pin: true to keep the KV of all paths when the request has ended.
        score_from: first prompt token whose log-probability is asked for, at least 1;
            None for none.
        num_top: most likely tokens behind the prompt that are asked for.
    """

    index: int
    prompt: list[int]
    text: str
    limit: int
    sampling: Sampling
    strategy: Strategy | None = None
    key: int = ROOT_KEY
    priority: int = 0
    pin: bool = False
    score_from: int | None = None
    num_top: int = 0

    @property
    def rows(self) -> int:
        """Query rows it needs in a step."""
        return 0 if self.strategy is None else self.strategy.rows

    @property
    def nodes(self) -> int:
        """Nodes it may hold at once, one for the shared part of its prompt counted."""
        return 1 if self.strategy is None else self.strategy.nodes + 1

    @property
    def asks(self) -> bool:
        """True if something is asked about the prompt's tokens."""
        return self.score_from is not None or self.num_top > 0

    @property
    def most_shared(self) -> int:
        """Most tokens of the prompt that need not be fed if they are cached.

        What is sampled or asked follows from a token that is fed.
        """
        most = len(self.prompt) - (self.strategy is not None or self.num_top > 0)
        return most if self.score_from is None else min(most, self.score_from - 1)

    def check(self, capacity: Capacity) -> None:
        """Check that the request can start in an empty engine.

        Raises:
            CapacityError: it needs more rows, nodes or pages than there are.
        """
        pages = capacity.pages_for(len(self.prompt)) + self.rows
        nodes = self.nodes - (self.strategy is not None)
        for name, needed, there in [
            ("rows", self.rows, capacity.rows),
            ("nodes", nodes, capacity.nodes),
            (f"pages of {capacity.page_size} tokens", pages, capacity.pages),
        ]:
            if needed > there:
                raise CapacityError(
                    f"prompt {self.index} with {len(self.prompt)} tokens and "
                    f"{self.rows} branches needs {needed} {name} to start, the engine "
                    f"has {there}; raise its capacity or lower n"
                )

    def branch_pages(self, page_size: int) -> int:
        """Return the pages that its generated tokens take at most."""
        if self.strategy is None:
            return 0
        return footprint_of(self.strategy).pages(self.limit, page_size)
