"""A request that has started: its slot, its rows, and what is still to be fed."""

import dataclasses
from collections import deque
from collections.abc import Iterable
from typing import Literal

from deft_jax.engine.call import Call
from deft_jax.engine.host_tree import HostTree
from deft_jax.engine.pin import Pin
from deft_jax.engine.prefix_cache import CachedNode
from deft_jax.engine.request import Request
from deft_jax.results.tree_node import FinishReason
from deft_jax.strategies.protocol import Planner
from deft_jax.strategies.traits import may_wait, runs_at_any_width

Place = Literal["prefix", "root", "node"]


@dataclasses.dataclass
class Feed:
    """Tokens to feed to one node.

    Attributes:
        place: "prefix" for a new node that others may share, "root" for the request's
            own new root, "node" for a node that is there.
        tokens: token ids.
        offset: place of the first of them in the prompt, where they are of it.
        node: the device node, where `place` is "node".
        cached: the cached node that the tokens are of; None for the request's own.
        fed: how many tokens have KV.
    """

    place: Place
    tokens: list[int]
    offset: int = 0
    node: int = -1
    cached: CachedNode | None = None
    fed: int = 0

    @property
    def is_done(self) -> bool:
        """True if all tokens have KV."""
        return self.fed == len(self.tokens)


@dataclasses.dataclass(eq=False)
class LiveRequest:
    """A request with a slot.

    Attributes:
        request: what was asked for.
        call: the call that asked.
        slot: request slot on the device.
        rows: rows it has, in the order of their numbers.
        tree: its tree on the host.
        number: how many requests have started before it.
        feeds: what is still to be fed, in order.
        above: cached node that it grows from; None before that was looked up.
        fed_node: cached node that it feeds; None if its prompt was cached.
        num_cached: tokens of its prompt that were cached.
        has_begun: true once some of its tokens were fed.
        is_unconfirmed: true while the host does not know whether the tokens that were
            fed last did fit.
        num_counted: prompt tokens that were counted as fed.
        has_decoded: true once a decode step of it was started.
        is_duplicate: true if more of its prompt was cached than could be shared.
        root: its root on the device; None before that is known.
        is_preempted: true while its tokens have no KV and it waits for room.
        is_waiting: true while it waits for scores of its strategy.
        told: scores that its planner is to be told with the next burst, by node.
        ends_as: why the host ends it; None while it goes on.
        notice: one line about what ended it early.
        pin: keeps its paths once it has ended, if that was asked for.
        scores: log-probabilities of its prompt's tokens that were asked for.
        top: most likely tokens behind its prompt, with their log-probabilities.
    """

    request: Request
    call: Call
    slot: int
    rows: list[int]
    tree: HostTree
    number: int = 0
    feeds: deque[Feed] = dataclasses.field(default_factory=deque)
    above: CachedNode | None = None
    fed_node: CachedNode | None = None
    num_cached: int = 0
    has_begun: bool = False
    is_unconfirmed: bool = False
    num_counted: int = 0
    has_decoded: bool = False
    is_duplicate: bool = False
    root: int | None = None
    is_preempted: bool = False
    is_waiting: bool = False
    told: dict[int, float] = dataclasses.field(default_factory=dict)
    ends_as: FinishReason | None = None
    notice: str | None = None
    pin: Pin | None = None
    scores: list[float] = dataclasses.field(default_factory=list)
    top: tuple[tuple[int, float], ...] = ()

    @property
    def planner(self) -> Planner:
        """What decides on the device, of a request that generates."""
        assert self.request.strategy is not None
        return self.request.strategy.planner

    @property
    def holder(self) -> CachedNode:
        """The cached node that stays while the request is there."""
        assert self.above is not None
        return self.fed_node or self.above

    @property
    def is_fed(self) -> bool:
        """True if nothing is left to be fed."""
        return self.above is not None and all(feed.is_done for feed in self.feeds)

    @property
    def decodes(self) -> bool:
        """True if it takes part in decode steps."""
        has_rows = self.request.strategy is not None
        is_held = self.is_preempted or self.is_waiting
        return has_rows and self.is_fed and not is_held

    @property
    def needs_look(self) -> bool:
        """True if the host must look at a burst of it before it starts the next."""
        may = self.request.strategy is not None and may_wait(self.planner)
        return may or self.needs_each_step

    @property
    def needs_each_step(self) -> bool:
        """True if the host must look at every step.

        Where branches compete, as beams do, one that ends at a stop string must make
        way in the next step: otherwise the text would depend on the lengths of bursts.
        """
        has_stops = self.decodes and bool(self.request.sampling.stop)
        return has_stops and not runs_at_any_width(self.planner)

    @property
    def num_to_feed(self) -> int:
        """Tokens that are still to be fed."""
        if self.above is None:
            return len(self.request.prompt)
        return sum(len(feed.tokens) - feed.fed for feed in self.feeds)


def calls_of(lives: Iterable[LiveRequest]) -> list[Call]:
    """Return the calls that some requests belong to, each once, in their order."""
    return list(dict.fromkeys(live.call for live in lives))
