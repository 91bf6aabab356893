"""Who may start: by seats, by the pages and nodes that are free, and by priority."""

from collections.abc import Callable, Sequence

from deft_jax.capacity import Capacity
from deft_jax.engine.eviction import (
    count_evictable,
    pages_to_come,
    pages_to_start,
)
from deft_jax.engine.live_request import LiveRequest
from deft_jax.engine.request import Request
from deft_jax.engine.scheduler import Waiting
from deft_jax.engine.work import Work
from deft_jax.errors import CapacityError

ChooseCapacity = Callable[[Sequence[Request], Capacity | None], Capacity]
"""Returns the capacity for waiting requests, given the present one."""


class Admission:
    """Gives slots to requests that wait, and lets preempted ones go on."""

    def __init__(self, work: Work, choose_capacity: ChooseCapacity):
        """Begin with nobody.

        Args:
            work: the requests.
            choose_capacity: asked when no request has a slot.
        """
        self.work = work
        self._choose_capacity = choose_capacity
        self._num_started = 0

    def admit(self) -> None:
        """Give slots to waiting requests while there is room for them."""
        if self.work.forest.lives:
            self._resume()
        while len(self.work.waiting):
            if not self.work.forest.lives and not self._prepare():
                return
            waiting = next(iter(self.work.waiting))
            if not self._has_room(waiting.request):
                return
            self.work.waiting.take(waiting)
            with self.work.listening(waiting.call):
                self._start(waiting)

    def _prepare(self) -> bool:
        """Choose a capacity while no request has a slot; say whether there is one."""
        while len(self.work.waiting):
            requests = [waiting.request for waiting in self.work.waiting]
            first = next(iter(self.work.waiting))
            try:
                self.work.forest.prepare(self._choose(requests, first))
                return True
            except Exception as error:
                self.work.fail_call(first.call, error)
        return False

    def _choose(self, requests: list[Request], first: Waiting) -> Capacity:
        """Return a capacity for all that wait, or for the first call alone.

        Raises:
            CapacityError: that is too large for the device, or for the given capacity.
        """
        present, alone = self.work.forest.capacity, first.call.requests
        try:
            capacity = self._choose_capacity(requests, present)
            self.work.runner.check(capacity)
        except CapacityError:
            capacity = self._choose_capacity(alone, present)
        for request in alone:
            request.check(capacity)
        return capacity

    def _has_room(self, request: Request) -> bool:
        """Say whether a request can start beside those that have."""
        forest = self.work.forest
        rooms, lives = forest.rooms, forest.lives.values()
        if not lives:
            self.work.is_held = False
            return True
        if self.work.is_held or not forest.seats.has(request):
            return False
        pages, nodes = count_evictable(forest.cache, rooms)
        cached = 0
        if forest.shares:
            cached = forest.cache.match(request.prompt, request.most_shared).tokens
        free_pages = forest.numbers.free_pages + pages - pages_to_come(lives, rooms)
        held = forest.num_cached - nodes
        free_nodes = rooms.nodes - held - sum(live.request.nodes for live in lives)
        needed = pages_to_start(request, rooms, cached)
        return needed <= free_pages and request.nodes <= free_nodes

    def _resume(self) -> None:
        """Let preempted requests be fed again while there is room for them."""
        forest = self.work.forest
        for live in self.work.lives_in_order():
            if not live.is_preempted:
                continue
            others = [
                one
                for one in forest.lives.values()
                if one.above is not None and not one.is_preempted
            ]
            if others and (self.work.is_held or not self._has_room_again(live, others)):
                return
            if not forest.feeds_again(live):
                return
            self.work.log.add("resume", request=live.request.index, slot=live.slot)

    def _has_room_again(self, live: LiveRequest, others: list[LiveRequest]) -> bool:
        """Say whether a preempted request can go on beside others."""
        forest = self.work.forest
        pages, _ = count_evictable(forest.cache, forest.rooms)
        free = forest.numbers.free_pages + pages
        free -= pages_to_come(others, forest.rooms)
        return pages_to_come([live], forest.rooms) <= free

    def _start(self, waiting: Waiting) -> None:
        """Give a request its slot and its rows."""
        request = waiting.request
        tree = self.work.new_tree(request)
        if request.strategy is not None:
            planner = request.strategy.planner
            lives = self.work.forest.lives.values()
            others = {one.planner for one in lives if one.request.strategy}
            if planner not in others:
                self.work.runner.start_planner(planner, others)
        slot, rows = self.work.forest.seats.take(request.rows)
        live = LiveRequest(request, waiting.call, slot, rows, tree, self._num_started)
        self._num_started += 1
        self.work.forest.seat(live)
        self.work.note_change()
        self.work.log.add("start", request=request.index, slot=slot, rows=rows)
