"""How large an engine is that was not told: what its requests need, or may need."""

import dataclasses
from collections.abc import Sequence

from deft_jax.capacity import DEFAULT_PAGE_SIZE, DEFAULT_ROWS, Capacity, bucket
from deft_jax.engine.request import Request
from deft_jax.engine.runner import Runner

OPEN_REQUESTS = 8
"""Requests like those that wait for which there is room, while more may come."""


class CapacityChoice:
    """Chooses the capacity of an engine, or keeps to the one that was given.

    Attributes:
        fixed: the capacity that was given, None if it is to be chosen.
        expects_more: true while requests may come at any time.
    """

    def __init__(
        self, runner: Runner, fixed: Capacity | None, memory: float | None, shares: bool
    ):
        """Set the choice up.

        Args:
            runner: knows the device's memory.
            fixed: the capacity, None to choose it.
            memory: share of the device's free memory to use for the KV pool, from 0
                to 1; None to take what the requests need.
            shares: true if prompts and paths are cached, which takes a node and a page
                more of each request.
        """
        self.fixed, self.expects_more = fixed, False
        self._max_rows = DEFAULT_ROWS
        self._runner, self._memory, self._shares = runner, memory, shares

    def choose(self, requests: Sequence[Request], present: Capacity | None) -> Capacity:
        """Return a capacity that some requests need, the present one if that will do.

        Where the memory is too little for all requests at once, fewer take turns.

        Args:
            requests: what waits; no other request is there.
            present: what the engine has, None for nothing.

        Raises:
            CapacityError: one of the requests does not fit the given capacity.
        """
        if self.fixed is not None:
            return self.fixed
        if present is None:
            self._max_rows = DEFAULT_ROWS
        most_rows = max(1, max(request.rows for request in requests))
        while True:
            needed = self._needed(requests, most_rows, self._max_rows)
            if present is not None and self._will_do(present, needed):
                return present
            one_at_a_time = len(requests) == 1 or self._max_rows < 2 * most_rows
            if one_at_a_time or self._runner.fits(needed):
                return self._fill_memory(self._at_least(present, needed))
            self._max_rows //= 2

    def _needed(
        self, requests: Sequence[Request], rows: int, max_rows: int
    ) -> Capacity:
        lengths = [len(request.prompt) for request in requests]
        if self.expects_more:
            lengths += [max(lengths)] * max(OPEN_REQUESTS - len(lengths), 0)
        nodes = max(request.nodes for request in requests)
        pages = max(request.branch_pages(DEFAULT_PAGE_SIZE) for request in requests)
        needed = Capacity.for_requests(
            lengths,
            max(request.limit for request in requests),
            rows,
            max(2, nodes - 1),
            max_rows=max_rows,
            pages=pages,
        )
        if not self._shares:
            return needed
        at_once = min(len(lengths), max(1, max_rows // rows))
        return dataclasses.replace(
            needed,
            nodes=bucket(needed.nodes + at_once),
            pages=bucket(needed.pages + at_once),
        )

    def _at_least(self, present: Capacity | None, needed: Capacity) -> Capacity:
        """Return what is needed; while others may follow, no less than there was."""
        if present is None or not self.expects_more:
            return needed
        names = ("requests", "rows", "nodes", "pages", "chunk")
        most = {
            name: max(getattr(present, name), getattr(needed, name)) for name in names
        }
        larger = dataclasses.replace(needed, **most)
        return larger if self._runner.fits(larger) else needed

    def _will_do(self, present: Capacity, needed: Capacity) -> bool:
        """Say whether the capacity that is there serves as well.

        While other requests may follow, more rows and longer chunks do no harm: narrow
        steps and chunks are made beside them, and what is cached stays.
        """
        if self.expects_more:
            rows, chunk = (
                max(present.rows, needed.rows),
                max(present.chunk, needed.chunk),
            )
            needed = dataclasses.replace(needed, rows=rows, chunk=chunk)
        return present.covers(needed)

    def _fill_memory(self, needed: Capacity) -> Capacity:
        """Return a capacity with as many pages as the share of the memory holds."""
        if self._memory is None:
            return needed
        page_bytes = self._runner.page_bytes(needed)
        pages = int(self._runner.free_bytes() * self._memory) // page_bytes
        return dataclasses.replace(needed, pages=max(pages, needed.pages))
