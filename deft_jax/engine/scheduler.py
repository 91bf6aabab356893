"""Which requests decode, and in which rows: host logic that knows no model."""

from collections import deque
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

from deft_jax.capacity import Capacity
from deft_jax.engine.request import Request
from deft_jax.runtime.state import Chunk


class Part(NamedTuple):
    """A run of a prompt's tokens that is fed in one chunk.

    Attributes:
        slot: request slot of the prompt.
        begin: first of the tokens.
        end: one past the last.
    """

    slot: int
    begin: int
    end: int


class Scheduler:
    """Gives waiting requests a slot and rows, and cuts their prompts into chunks.

    Attributes:
        waiting: requests that have not started, the next one first.
        active: the started requests by slot, the latest last.
    """

    def __init__(self, requests: Iterable[Request], capacity: Capacity):
        self.capacity = capacity
        self.waiting = deque(requests)
        self.active: dict[int, Request] = {}
        self._rows: dict[int, list[int]] = {}
        self._fed: dict[int, int] = {}
        self._free_rows = list(range(capacity.rows))
        self._is_held = False

    def admit(self) -> list[int]:
        """Start waiting requests in order while there is room; return their slots."""
        started: list[int] = []
        while self.waiting and self._has_room(self.waiting[0]):
            request = self.waiting.popleft()
            slots = range(self.capacity.requests)
            slot = next(slot for slot in slots if slot not in self.active)
            self.active[slot], self._fed[slot] = request, 0
            self._rows[slot] = self._free_rows[: request.rows]
            del self._free_rows[: request.rows]
            started.append(slot)
        return started

    def _has_room(self, request: Request) -> bool:
        """Say whether a request fits beside the active ones by what all declare."""
        if not self.active:
            return True
        others = self.active.values()
        pages = sum(r.pages(self.capacity) for r in others)
        nodes = sum(r.nodes for r in others)
        return (
            not self._is_held
            and len(self.active) < self.capacity.requests
            and request.rows <= len(self._free_rows)
            and nodes + request.nodes <= self.capacity.nodes
            and pages + request.pages(self.capacity) <= self.capacity.pages
        )

    def end(self, slot: int) -> Request:
        """Give the slot and the rows of a request back; return the request."""
        self._free_rows = sorted(self._free_rows + self._rows.pop(slot))
        del self._fed[slot]
        self._is_held = False
        return self.active.pop(slot)

    def put_back(self, slot: int) -> None:
        """Let a request that did not fit wait until another one has ended."""
        self.waiting.appendleft(self.end(slot))
        self._is_held = True

    def is_fed(self, slot: int) -> bool:
        """Say whether the whole prompt of a request was fed."""
        return self._fed[slot] == len(self.active[slot].prompt)

    def fed(self, slot: int) -> int:
        """Return how many tokens of a request's prompt were fed."""
        return self._fed[slot]

    def next_parts(self) -> list[Part]:
        """Return what the next chunk holds: prompts packed one behind the other.

        Prompts of 3, 9 and 4 tokens in slots 0, 1 and 2, chunks of 8 tokens:
        [(0, 0, 3), (1, 0, 5)], then [(1, 5, 9), (2, 0, 4)], then nothing.
        """
        parts, room = [], self.capacity.chunk
        for slot, request in self.active.items():
            begin = self._fed[slot]
            end = min(len(request.prompt), begin + room)
            if begin < end:
                parts.append(Part(slot, begin, end))
                room -= end - begin
        return parts

    def note_fed(self, parts: Collection[Part]) -> None:
        """Note that the tokens of a chunk are in the pool."""
        for part in parts:
            self._fed[part.slot] = part.end

    def chunk(self, parts: Collection[Part]) -> Chunk:
        """Return the chunk with some parts of prompts.

        A prompt's rows start where its last token is fed. With the prompts of
        `next_parts`, rows 0 and 1 of slot 0, rows 2 and 3 of slot 1, R = 3 and B = 6:

            request  0 0 0 1 1 1 1 1    then  1 1 1 1 2 2 2 2
            starts   1 1 0                    0 0 1
            last     2 2 -1 -1 -1 -1          -1 -1 3 3 7 7
            number   0 1 0 0 0 0              0 0 0 1 0 1
        """
        capacity = self.capacity
        token = np.zeros(capacity.chunk, np.int32)
        request = np.full(capacity.chunk, capacity.requests, np.int32)
        starts = np.zeros(capacity.requests, bool)
        last = np.full(capacity.rows, -1, np.int32)
        number = np.zeros(capacity.rows, np.int32)
        at = 0
        for slot, begin, end in parts:
            prompt, rows = self.active[slot].prompt, self._rows[slot]
            behind = at + end - begin
            token[at:behind], request[at:behind] = prompt[begin:end], slot
            starts[slot] = begin == 0
            if end == len(prompt):
                last[rows], number[rows] = behind - 1, np.arange(len(rows))
            at = behind
        return Chunk(token, request, starts, last, number)

    def limits(self) -> list[int | None]:
        """Return the token limit of each request slot, None for free slots."""
        active = (self.active.get(slot) for slot in range(self.capacity.requests))
        return [request and request.limit for request in active]
