"""Chunks: which tokens of which requests are fed together, and to which nodes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from deft_jax.capacity import Capacity
from deft_jax.engine.live_request import Feed, LiveRequest
from deft_jax.engine.runner import empty_chunk
from deft_jax.runtime.state import Chunk, Question
from deft_jax.tree.state import NO_NODE


class Part(NamedTuple):
    """A run of tokens of one request that is fed in one chunk.

    Attributes:
        live: the request.
        feed: what the tokens are a part of.
        begin: first of the tokens.
        end: one past the last.
        at: index in the chunk of the first.
        is_first: true if the request begins with this part.
    """

    live: LiveRequest
    feed: Feed
    begin: int
    end: int
    at: int
    is_first: bool


def next_parts(lives: Iterable[LiveRequest], room: int) -> list[Part]:
    """Return what the next chunk holds: requests packed one behind the other.

    Prompts of 3, 9 and 4 tokens and a chunk of 8: all of the first and 5 tokens of the
    second; then 4 of the second and all of the third.

    Args:
        lives: the requests, the first to be fed first.
        room: tokens of the chunk.
    """
    parts: list[Part] = []
    used = 0
    for live in lives:
        for feed in live.feeds:
            count = min(len(feed.tokens) - feed.fed, room - used)
            if count > 0:
                is_first = not live.has_begun and not any(
                    part.live is live for part in parts
                )
                end = feed.fed + count
                parts.append(Part(live, feed, feed.fed, end, used, is_first))
                used += count
            if feed.fed + count < len(feed.tokens):
                break
    return parts


def build_chunk(
    capacity: Capacity, num_tokens: int, parts: Sequence[Part]
) -> tuple[Chunk, Question | None]:
    """Return the arrays of a chunk, and what is asked about it, if anything.

    A request of slot 1 shares the tokens 5 6 and has the root token 7. With N = 10,
    R = 2 and C = 4, and nothing cached above it:

        token 5 6 7 .    node 11 11 13 -1    prefix . NO_NODE    root . 11

    Args:
        capacity: sizes of the state.
        num_tokens: `C`.
        parts: what `next_parts` gave.
    """
    chunk = empty_chunk(capacity, num_tokens)
    size, num_requests = capacity.nodes, capacity.requests
    for part in parts:
        live, feed, slot = part.live, part.feed, part.live.slot
        here = slice(part.at, part.at + part.end - part.begin)
        chunk.token[here] = feed.tokens[part.begin : part.end]
        chunk.request[here] = slot
        chunk.starts[slot] |= part.is_first
        above = live.above.node if live.above is not None else None
        parent = NO_NODE if above is None else above
        if feed.place == "prefix":
            chunk.node[here] = size + slot
            if part.begin == 0:
                chunk.prefix[slot] = parent
        elif feed.place == "root":
            chunk.node[here] = size + num_requests + slot
            if part.begin == 0:
                chunk.root[slot] = parent if live.fed_node is None else size + slot
                chunk.key[slot] = live.request.key
            if part.end == len(feed.tokens):
                chunk.last[live.rows] = here.stop - 1
                chunk.number[live.rows] = np.arange(len(live.rows))
        else:
            chunk.node[here] = feed.node
    return chunk, _question(capacity, num_tokens, parts)


def _question(
    capacity: Capacity, num_tokens: int, parts: Sequence[Part]
) -> Question | None:
    """Return what is asked about the tokens of a chunk."""
    asking = [part for part in parts if part.live.request.asks]
    if not asking:
        return None
    target = np.zeros(num_tokens, np.int32)
    top = np.full(capacity.requests, -1, np.int32)
    for live, feed, begin, end, at, _ in asking:
        prompt = live.request.prompt
        after = prompt[feed.offset + begin + 1 : feed.offset + end + 1]
        target[at : at + len(after)] = after
        if feed.offset + end == len(prompt):
            top[live.slot] = at + end - begin - 1
    return Question(target, top)
