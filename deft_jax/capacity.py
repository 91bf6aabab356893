"""How much one engine can hold at once; every array shape of a step follows from it."""

import dataclasses
from collections.abc import Callable, Sequence

from deft_jax.errors import CapacityError

DEFAULT_PAGE_SIZE = 64
"""Tokens per page."""

DEFAULT_ROWS = 128
"""Branches that grow at the same time, unless one request has more."""

SMALL_CHUNK, LARGE_CHUNK = 64, 256
"""Prompt tokens per step, for short prompts and for all others."""

MIN_REQUESTS = 4
"""Fewest request slots, so that calls of few prompts share a compilation."""

MIN_PAGES = 16
"""Fewest pages of the pool, for the same reason."""


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What one request may hold at once (`deft_jax.strategies.traits.footprint_of`).

    Attributes:
        rows: query rows in a step.
        nodes: nodes, its root counted.
        count_pages: takes the tokens that a path may have and the tokens per page, and
            returns the pages of the generated tokens; None counts a branch of full
            length for every node but the root.
    """

    rows: int
    nodes: int
    count_pages: Callable[[int, int], int] | None = None

    def pages(self, limit: int, page_size: int) -> int:
        """Return the pages that generated tokens take at most, without the prompt's.

        Args:
            limit: tokens that a path may have.
            page_size: tokens per page.
        """
        if self.count_pages is not None:
            return int(self.count_pages(limit, page_size))
        return (self.nodes - 1) * -(-limit // page_size)


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
        CapacityError: a size is no integer, or below 1.
    """

    requests: int
    rows: int
    nodes: int
    pages: int
    page_size: int = DEFAULT_PAGE_SIZE
    chunk: int = LARGE_CHUNK

    def __post_init__(self):
        """Check the sizes."""
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise CapacityError(
                    f"capacity: {name} must be an integer, got {value!r:.60}"
                )
            if value < 1:
                raise CapacityError(f"capacity: {name} must be at least 1, got {value}")

    @property
    def tokens(self) -> int:
        """Tokens that fit the KV pool if every page is full."""
        return self.pages * self.page_size

    def pages_for(self, num_tokens: int) -> int:
        """Return the pages that a node of so many tokens takes."""
        return -(-num_tokens // self.page_size)

    def covers(self, other: "Capacity") -> bool:
        """Say whether whatever fits `other` fits this, with equal rows and chunks."""
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
        max_rows: int = DEFAULT_ROWS,
        pages: int | None = None,
    ) -> "Capacity":
        """Return what a call needs, rounded up so that similar calls share a program.

        There are nodes and pages for a branch in every row, so that all n with the same
        `row_bucket` give the same capacity: from 5 to 8, and from 9 to 16.

        Args:
            prompt_tokens: lengths of the prompts.
            max_new_tokens: tokens per branch.
            rows: query rows per request (`Strategy.rows`).
            nodes: nodes per request (`Strategy.nodes`).
            page_size: tokens per page.
            max_rows: rows of all requests that decode at the same time; a request that
                needs more has them, alone.
            pages: pages per request besides the prompt's (`Footprint.pages`); None
                takes a branch of full length for every node.
        """
        requests = min(len(prompt_tokens), max(1, max_rows // rows))
        longest = sorted(prompt_tokens, reverse=True)[:requests]
        prompt_pages = sum(-(-length // page_size) for length in longest)
        all_rows = row_bucket(requests * rows)
        branches = max(requests * (nodes - 1), all_rows)
        if pages is None:
            pages = Footprint(rows, nodes).pages(max_new_tokens, page_size)
        in_every_row = all_rows * -(-max_new_tokens // page_size)
        branch_pages = max(requests * pages, in_every_row)
        return cls(
            requests=bucket(max(MIN_REQUESTS, requests)),
            rows=all_rows,
            nodes=bucket(requests + branches),
            pages=bucket(max(MIN_PAGES, prompt_pages + branch_pages)),
            page_size=page_size,
            chunk=chunk_for(sum(longest)),
        )


def chunk_for(prompt_tokens: int) -> int:
    """Return the prompt tokens to feed per step, for so many of all prompts."""
    return SMALL_CHUNK if prompt_tokens <= SMALL_CHUNK else LARGE_CHUNK


def bucket(value: int) -> int:
    """Return the smallest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is not below `value`.

    At most a third of a capacity is unused, and few different ones are compiled.
    """
    size = 1 << max(value - 1, 0).bit_length()
    return size * 3 // 4 if size >= 4 and size * 3 // 4 >= value else size


def row_bucket(rows: int) -> int:
    """Return the smallest of 1, 2, 3, 4, 8, 16, 24, 32, ... that is not below `rows`.

    It is `bucket` without 6 and 12. Numbers of branches with the same bucket share
    their programs, and those without, such as 1 and 2 or 8 and 9, are compiled apart.
    Sharing costs idle rows, which a CPU computes like busy ones: a step takes 33 % more
    with 2 rows than with 1, 18 % with 4 for 3, 5 % with 8 for 6, and 0 to 10 % with 16
    for 12 (SmolLM2 in float32, 2 cores; `bench/NOTES.md`).
    """
    size = bucket(rows)
    return {6: 8, 12: 16}.get(size, size)
