"""The forest as the host sees it: who sits where, what is cached, what is to change."""

from collections import deque
from collections.abc import Iterable

import numpy as np

from deft_jax.capacity import Capacity
from deft_jax.engine.eviction import evict
from deft_jax.engine.forest_reading import read_subtrees
from deft_jax.engine.live_request import Feed, LiveRequest
from deft_jax.engine.log_replay import LogReplay
from deft_jax.engine.pending_edit import PendingEdit
from deft_jax.engine.pin import Pin
from deft_jax.engine.prefix_cache import CachedNode, Match, PrefixCache
from deft_jax.engine.request import Request
from deft_jax.engine.runner import Runner
from deft_jax.engine.scheduler import Seats
from deft_jax.runtime.state import Numbers, Report
from deft_jax.strategies.traits import leaves_paths


class Forest:
    """What the host knows of the device's forest, and the changes it makes to it.

    Attributes:
        runner: owns the device's state.
        shares: true to cache prompts and paths.
        capacity: sizes of the state.
        lives: the requests with a slot, the first to start first.
        seats: free slots and rows.
        cache: the resting nodes by their tokens.
        replay: which result node each device node stands for.
        pending: what to change when no burst is under way.
        numbers: what the device last reported.
    """

    def __init__(self, runner: Runner, shares: bool):
        self.runner, self.shares = runner, shares
        self.capacity: Capacity | None = None
        self.lives: dict[int, LiveRequest] = {}
        self.cache = PrefixCache()

    def prepare(self, capacity: Capacity) -> None:
        """Begin with an empty forest of a capacity, unless there is one already."""
        if capacity != self.capacity or not self.runner.has_state:
            self.capacity = None
            self.runner.prepare(capacity)
            self.capacity = capacity
            self.seats = Seats(capacity)
            self.cache = PrefixCache()
            vocab_size = self.runner.model.config.vocab_size
            self.replay = LogReplay(capacity.nodes, vocab_size)
            self.pending = PendingEdit()
            self.numbers = _empty_numbers(capacity)

    def reset(self) -> None:
        """Forget everything, on the device too."""
        self.lives.clear()
        self.capacity = None
        self.cache = PrefixCache()
        self.runner.reset()

    @property
    def rooms(self) -> Capacity:
        """The capacity, which there is once something was admitted."""
        assert self.capacity is not None
        return self.capacity

    def note(self, report: Report) -> Numbers:
        """Wait for a report and note what it says."""
        packed = np.asarray(report.numbers)
        self.numbers = Numbers.unpack(packed, self.rooms.requests)
        return self.numbers

    # Requests come and go.

    def seat(self, live: LiveRequest) -> None:
        """Note a request that has taken its seat."""
        self.lives[live.slot] = live

    def look_up(self, live: LiveRequest) -> bool:
        """Find out how much of a prompt is cached, and so what is to be fed.

        No burst may be under way: a node may have to be split.

        Returns:
            False if the request has to wait, since another one is feeding what both
            begin with.
        """
        request, cache = live.request, self.cache
        prompt, own = request.prompt, int(request.strategy is not None)
        if not self._has_room_to_share(request):
            live.above = cache.top
            if own:
                live.holder.users += 1
                live.feeds = deque([Feed("root", prompt)])
                return True
            match = Match(cache.top, 0, 0)
        else:
            match = cache.match(prompt, request.most_shared)
        if not match.node.is_fed:
            return False
        if match.splits:
            match = self._split(match)
        live.above, live.num_cached = match.node, match.tokens
        shared = prompt[match.tokens : len(prompt) - own]
        if shared:
            live.fed_node = cache.add(match.node, shared)
            live.feeds.append(
                Feed("prefix", shared, offset=match.tokens, cached=live.fed_node)
            )
            live.is_duplicate = match.tokens == request.most_shared < len(prompt) - own
        if own:
            live.feeds.append(Feed("root", prompt[-1:], offset=len(prompt) - 1))
        live.holder.users += 1
        return True

    def _has_room_to_share(self, request: Request) -> bool:
        """Say whether a request that shares would still fit an empty forest.

        The part of its prompt that is shared takes a node and a page of its own.
        """
        rooms = self.rooms
        pages = rooms.pages_for(len(request.prompt)) + request.rows + 1
        return self.shares and request.nodes <= rooms.nodes and pages <= rooms.pages

    def _split(self, match: Match) -> Match:
        """Split the last node of a match; return the match of whole nodes."""
        node, above = match.node, match.node.parent
        assert node.node is not None and above is not None
        self.pending.splits[node.node] = match.part
        made = int(self.change().split_off[0])
        if made >= self.rooms.nodes:
            # No node is free: what is above is shared alone.
            self.pending.clears = True
            return Match(above, match.tokens - match.part, len(above.tokens))
        upper = self.cache.split(node, match.part)
        upper.node = made
        return Match(upper, match.tokens, match.part)

    def leave(self, live: LiveRequest) -> None:
        """Take a request's seat and its hold on cached nodes back."""
        del self.lives[live.slot]
        self.seats.give_back(live.slot, live.rows)
        self.replay.forget(live.tree)
        if live.above is None:
            return
        self._release_unfinished(live)
        node: CachedNode = live.holder
        node.users -= 1
        is_reading = live.request.strategy is None
        unwanted = is_reading and live.is_duplicate and live.fed_node is not None
        # What has no KV, or is not to be shared, goes with its last user.
        while node is not self.cache.top and (
            not node.is_fed or unwanted or not self.shares
        ):
            if node.users or node.pins or not node.is_leaf:
                return
            above, unwanted = node.parent, False
            assert above is not None
            self.cache.remove(node)
            if node.node is not None:
                self.pending.dropped.add(node.node)
            node = above

    def drop(self, live: LiveRequest) -> None:
        """Let the device forget the nodes of a request that the host has ended."""
        root = int(self.numbers.roots[live.slot])
        if root < self.rooms.nodes:
            self.pending.dropped.add(root)

    def rests(self, live: LiveRequest) -> bool:
        """Say whether the paths of a request stay when it ends."""
        strategy = live.request.strategy
        is_shared = live.above is not None and live.above is not self.cache.top
        is_shared |= live.fed_node is not None
        return (
            self.shares
            and strategy is not None
            and leaves_paths(strategy.planner)
            and is_shared
        )

    def keep_paths(self, lives: Iterable[LiveRequest]) -> None:
        """Put the paths that ended requests have left into the cache."""
        lives = [live for live in lives if live.root is not None]
        if not lives:
            return
        roots = [live.root for live in lives if live.root is not None]
        nodes = read_subtrees(self.runner.state.tree, roots)
        cached = {live.root: live for live in lives}
        above: dict[int, CachedNode] = {}
        for node, parent, tokens in nodes:
            live = cached.get(node)
            top = live.holder if live is not None else above.get(parent)
            if top is None:
                continue
            if not tokens:
                above[node] = top
                continue
            child = above[node] = self.cache.add(top, tokens)
            child.node, child.is_fed = node, True
        for live in lives:
            if live.request.pin and live.root in above:
                ends = [n for n in above[live.root].subtree() if n.is_leaf]
                live.pin = self.pin(ends)

    def pin(self, ends: list[CachedNode]) -> Pin:
        """Keep the KV of some paths until they are unpinned."""
        for node in ends:
            node.pins += 1
        return Pin(ends)

    def unpin(self, pin: Pin) -> None:
        """Let the KV of some paths be evicted again."""
        for node in pin.ends:
            node.pins -= 1
        pin.ends = []

    # Changes between bursts.

    def change(self) -> Numbers:
        """Make the pending changes; no burst may be under way."""
        ended = np.flatnonzero(self.replay.take_dropped()).tolist()
        owners = {id(live.tree): live for live in self.lives.values()}
        for node in ended:
            live = owners.get(id(self.replay.tree_of(node)))
            rests = live is not None and self.rests(live)
            (self.pending.rest if rests else self.pending.dropped).add(node)
        report = self.runner.edit(self.pending.arrays(self.rooms))
        self.pending = PendingEdit()
        return self.note(report)

    @property
    def has_changes(self) -> bool:
        """True if `change` has something to do."""
        return bool(self.pending) or self.replay.has_dropped

    @property
    def num_cached(self) -> int:
        """Nodes in the cache."""
        return sum(1 for _ in self.cache.nodes())

    def evict(self, pages: int, nodes: int, *, pinned: bool = False) -> int:
        """Drop cached paths to free pages and nodes; return how many nodes go."""
        if self.capacity is None:
            return 0
        gone = evict(self.cache, self.rooms, pages, nodes, pinned=pinned)
        self.pending.dropped |= {n.node for n in gone if n.node is not None}
        return len(gone)

    def evict_finished(self) -> int:
        """Drop finished branches of requests that go on; return how many."""
        resting = np.flatnonzero(np.asarray(self.runner.state.resting)).tolist()
        known = {node.node for node in self.cache.nodes()}
        finished = set(resting) - known - {int(x) for x in self.numbers.feeding}
        self.pending.dropped |= finished
        return len(finished)

    def _release_unfinished(self, live: LiveRequest) -> None:
        """Let a shared prompt that a request has fed again in part be fed anew."""
        for feed in live.feeds:
            is_begun = feed.place == "node" and 0 < feed.fed < len(feed.tokens)
            if feed.cached is not None and is_begun:
                self.pending.released.add(feed.node)

    def release_shared(self) -> int:
        """Free the pages of prompts that only preempted requests grow from.

        Their tokens are fed again when the first of these goes on.

        Returns:
            How many nodes were released.
        """
        running: set[CachedNode] = set()
        for live in self.lives.values():
            if live.above is not None and not live.is_preempted:
                running.update(live.holder.lineage())
        released = [n for n in self.cache.nodes() if n.is_fed and n not in running]
        for node in released:
            assert node.node is not None
            node.is_fed = False
            self.pending.released.add(node.node)
        return len(released)

    def feeds_again(self, live: LiveRequest) -> bool:
        """Let a preempted request feed its tokens again, its prompt's too if need be.

        Returns:
            False if another request is feeding what both grow from.
        """
        unfed = [node for node in live.holder.lineage() if not node.is_fed]
        feeding = {
            id(feed.cached)
            for other in self.lives.values()
            if not other.is_preempted
            for feed in other.feeds
        }
        if any(id(node) in feeding for node in unfed):
            return False
        for node in unfed:
            assert node.node is not None
            feed = Feed("node", node.tokens, node=node.node, cached=node)
            live.feeds.appendleft(feed)
        live.is_preempted = False
        return True

    def release(self, live: LiveRequest) -> None:
        """Free the pages of a request, whose tokens are to be fed again later."""
        live.is_preempted = True
        if live.feeds:
            own = [feed for feed in live.feeds if feed.cached is None]
            for feed in own:
                feed.fed = 0
            self.pending.released |= {feed.node for feed in own}
            self._release_unfinished(live)
            live.feeds = deque(own)
            return
        assert live.root is not None
        for node, _, tokens in read_subtrees(self.runner.state.tree, [live.root]):
            live.feeds.append(Feed("node", tokens, node=node))
            self.pending.released.add(node)


def _empty_numbers(capacity: Capacity) -> Numbers:
    """Return what an empty forest reports."""
    free = np.full(capacity.requests, capacity.nodes, np.int64)
    idle = np.full(capacity.rows, capacity.nodes, np.int64)
    no_slot = np.zeros(capacity.requests, np.int64)
    free_now = (0, 0, capacity.pages, capacity.nodes, 0)
    return Numbers(*free_now, free, free, free, no_slot, no_slot, free, idle)
