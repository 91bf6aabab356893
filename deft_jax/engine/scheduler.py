"""Which requests run, and in which slots and rows: host logic that knows no device."""

import bisect
import dataclasses
from collections.abc import Callable, Iterator

from deft_jax.capacity import Capacity
from deft_jax.engine.call import Call
from deft_jax.engine.request import Request


@dataclasses.dataclass(eq=False)
class Waiting:
    """A request that has no slot yet.

    Attributes:
        request: what was asked for.
        call: the call that asked.
        order: number of its arrival.
    """

    request: Request
    call: Call
    order: int

    @property
    def rank(self) -> tuple[int, int]:
        """What the queue is sorted by: priority, then arrival."""
        return -self.request.priority, self.order


class Seats:
    """The free slots and rows of a capacity.

    Attributes:
        slots: free request slots, in order.
        rows: free rows, in order.
    """

    def __init__(self, capacity: Capacity):
        self.slots = list(range(capacity.requests))
        self.rows = list(range(capacity.rows))

    def take(self, num_rows: int) -> tuple[int, list[int]]:
        """Return the first free slot and the first free rows."""
        rows, self.rows = self.rows[:num_rows], self.rows[num_rows:]
        return self.slots.pop(0), rows

    def give_back(self, slot: int | None, rows: list[int]) -> None:
        """Free a slot, if one is given, and rows."""
        if slot is not None:
            bisect.insort(self.slots, slot)
        self.rows = sorted(self.rows + rows)

    def has(self, request: Request) -> bool:
        """Say whether there is a seat for a request."""
        return bool(self.slots) and request.rows <= len(self.rows)


class WaitingList:
    """The requests that have not started, by priority and then by arrival."""

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []
        self._order = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        """Yield them in the order in which they start."""
        return iter(list(self._waiting))

    def add(self, request: Request, call: Call) -> None:
        """Let a request wait behind those of its priority."""
        self._order += 1
        self._insert(Waiting(request, call, self._order))

    def put_back(self, request: Request, call: Call) -> None:
        """Let a request that did not fit wait before those of its priority."""
        self._insert(Waiting(request, call, -self._order))
        self._order += 1

    def _insert(self, waiting: Waiting) -> None:
        bisect.insort(self._waiting, waiting, key=lambda one: one.rank)

    def take(self, waiting: Waiting) -> None:
        """Take a request off the list."""
        self._waiting.remove(waiting)

    def remove(self, is_out: Callable[[Waiting], bool]) -> list[Waiting]:
        """Take some requests off the list and return them."""
        out = [waiting for waiting in self._waiting if is_out(waiting)]
        self._waiting = [one for one in self._waiting if one not in out]
        return out
