"""One prompt of a call, and what it needs of an engine."""

import dataclasses
from collections.abc import Callable

from deft_jax.capacity import Capacity, Footprint
from deft_jax.errors import CapacityError


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt of a call.

    Attributes:
        index: number of the prompt in the call.
        prompt: token ids.
        text: the prompt's text.
        limit: tokens a branch may have; the context may leave fewer than asked for.
        rows: query rows it needs in a step.
        nodes: nodes it may hold at once.
        count_pages: pages of its generated tokens (`Footprint.count_pages`).
    """

    index: int
    prompt: list[int]
    text: str
    limit: int
    rows: int
    nodes: int
    count_pages: Callable[[int, int], int] | None = None

    def check(self, capacity: Capacity) -> None:
        """Check that the request can start in an empty engine.

        Raises:
            CapacityError: it needs more rows, nodes or pages than there are.
        """
        pages = capacity.pages_for(len(self.prompt)) + self.rows
        for name, needed, there in [
            ("rows", self.rows, capacity.rows),
            ("nodes", self.nodes, capacity.nodes),
            (f"pages of {capacity.page_size} tokens", pages, capacity.pages),
        ]:
            if needed > there:
                raise CapacityError(
                    f"prompt {self.index} with {len(self.prompt)} tokens and "
                    f"{self.rows} branches needs {needed} {name} to start, the engine "
                    f"has {there}; raise its capacity or lower n"
                )

    def pages(self, capacity: Capacity) -> int:
        """Return the pages it takes if every branch grows to its limit."""
        needs = Footprint(self.rows, self.nodes, self.count_pages)
        generated = needs.pages(self.limit, capacity.page_size)
        return capacity.pages_for(len(self.prompt)) + generated
