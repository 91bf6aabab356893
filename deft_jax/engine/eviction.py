"""Which cached paths give way, and how much room there would be without them."""

import itertools
from collections.abc import Iterable

from deft_jax.capacity import Capacity
from deft_jax.engine.live_request import LiveRequest
from deft_jax.engine.prefix_cache import CachedNode, PrefixCache
from deft_jax.engine.request import Request

RESERVE_TOKENS = 64
"""Tokens for which every branch that grows has room kept when a request starts."""


def evict(
    cache: PrefixCache,
    capacity: Capacity,
    pages: int,
    nodes: int,
    *,
    pinned: bool = False,
) -> list[CachedNode]:
    """Forget cached nodes until so many pages and nodes are free, or none is left.

    The longest unused leaves go first, and the nodes above them once they are leaves.

    Args:
        cache: loses the nodes.
        capacity: says how many tokens a page has.
        pages: pages to free; a node of `n` tokens is taken to free those it fills.
        nodes: nodes to free.
        pinned: true to evict pinned paths.

    Returns:
        The nodes, to be dropped on the device.
    """
    gone: list[CachedNode] = []
    while pages > 0 or nodes > 0:
        leaves = cache.evictable(pinned=pinned)
        if not leaves:
            break
        for leaf in leaves:
            cache.remove(leaf)
            gone.append(leaf)
            pages -= max(1, len(leaf.tokens) // capacity.page_size)
            nodes -= 1
            if pages <= 0 and nodes <= 0:
                break
    return gone


def pages_to_come(lives: Iterable[LiveRequest], capacity: Capacity) -> int:
    """Return the pages that requests with a slot are going to open soon."""
    pages = 0
    for live in lives:
        limit = min(live.request.limit, RESERVE_TOKENS)
        pages += capacity.pages_for(live.num_to_feed)
        pages += len(live.rows) * capacity.pages_for(limit)
    return pages


def pages_to_start(request: Request, capacity: Capacity, cached: int) -> int:
    """Return the pages that a request should find free when it starts.

    Args:
        request: what waits.
        capacity: says how many tokens a page has.
        cached: tokens of its prompt that need not be fed.
    """
    limit = min(request.limit, RESERVE_TOKENS)
    prompt = capacity.pages_for(len(request.prompt) - cached) + 1
    return prompt + request.rows * capacity.pages_for(limit)


def count_evictable(cache: PrefixCache, capacity: Capacity) -> tuple[int, int]:
    """Return how many pages and nodes eviction could free, pinned paths left out.

    A node stays if somebody uses or pins it, or a node below it.
    """
    held: set[CachedNode] = set()
    nodes = list(cache.nodes())
    for node in nodes:
        if node.users or node.pins or not node.is_fed:
            held.update(itertools.takewhile(lambda n: n not in held, node.lineage()))
    free = [node for node in nodes if node not in held]
    return sum(len(n.tokens) // capacity.page_size for n in free), len(free)
