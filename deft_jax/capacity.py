"""How much one engine can hold at once; every array shape of a step follows from it."""

import dataclasses
from collections.abc import Sequence

from deft_jax.errors import CapacityError

DEFAULT_PAGE_SIZE = 64
DEFAULT_ROWS = 64
SMALL_CHUNK, LARGE_CHUNK = 64, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """Sizes of everything on the device. One compilation serves all trees within it.

    Attributes:
        requests: `R`, trees that decode at the same time; more wait their turn.
        rows: `B`, branches of all requests that grow at the same time.
        nodes: `N`, nodes of all trees, the prompts counted.
        pages: `M`, pages of the KV pool.
        page_size: `P`, tokens per page.
        chunk: prompt tokens fed per step.

    Raises:
        CapacityError: a size is below 1.
    """

    requests: int
    rows: int
    nodes: int
    pages: int
    page_size: int = DEFAULT_PAGE_SIZE
    chunk: int = LARGE_CHUNK

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise CapacityError(f"capacity: {name} must be at least 1, got {value}")

    @property
    def tokens(self) -> int:
        """Tokens that fit the KV pool if every page is full."""
        return self.pages * self.page_size

    def pages_for(self, num_tokens: int) -> int:
        """Pages that a node of so many tokens takes."""
        return -(-num_tokens // self.page_size)

    def covers(self, other: "Capacity") -> bool:
        """True if whatever fits `other` fits this, with pages and chunks alike."""
        sizes = ("requests", "nodes", "pages")
        return (
            all(getattr(self, name) >= getattr(other, name) for name in sizes)
            and self.rows == other.rows
            and self.page_size == other.page_size
            and self.chunk == other.chunk
        )

    @classmethod
    def for_requests(
        cls,
        prompt_tokens: Sequence[int],
        max_new_tokens: int,
        rows: int,
        nodes: int,
        page_size: int = DEFAULT_PAGE_SIZE,
    ) -> "Capacity":
        """What a call needs, rounded up so that similar calls share a compilation.

        Args:
            prompt_tokens: lengths of the prompts.
            max_new_tokens: tokens per branch.
            rows: query rows per request (`Strategy.rows`).
            nodes: nodes per request (`Strategy.nodes`).
            page_size: tokens per page.
        """
        requests = min(len(prompt_tokens), max(1, DEFAULT_ROWS // rows))
        longest = sorted(prompt_tokens, reverse=True)[:requests]
        prompt_pages = sum(-(-length // page_size) for length in longest)
        branch_pages = requests * (nodes - 1) * -(-max_new_tokens // page_size)
        return cls(
            requests=bucket(requests),
            rows=bucket(requests * rows),
            nodes=bucket(requests * nodes),
            pages=bucket(max(16, prompt_pages + branch_pages)),
            page_size=page_size,
            chunk=chunk_for(sum(longest)),
        )


def chunk_for(prompt_tokens: int) -> int:
    """Prompt tokens to feed per step, for prompts of so many tokens together."""
    return SMALL_CHUNK if prompt_tokens <= SMALL_CHUNK else LARGE_CHUNK


def bucket(value: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, ... that is not below `value`.

    At most a third of a capacity is unused, and few different ones are compiled.
    """
    size = 1
    while size < value:
        size *= 2
    return size * 3 // 4 if size >= 4 and size * 3 // 4 >= value else size
