"""Walks a schedule in plain Python, as the warps of a kernel do."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from deft_jax.attention.schedule import Schedule
from deft_jax.attention.spec import Tiling
from deft_jax.attention.units import BOTH, FIRST_HALF, SECOND_HALF, WHOLE
from deft_jax.pallas_kernels.grouped_partial_attention import work


class Block(NamedTuple):
    """Units of one class that are attended in one step."""

    kind: int
    units: tuple[int, ...]


class Piece(NamedTuple):
    """Positions `begin:stop` of a tile that fall into one worker's share.

    A tile that sees nothing has a position, but no block.
    """

    worker: int
    head: int
    tile: int
    begin: int
    stop: int
    blocks: list[Block]


def walk(schedule: Schedule, tiling: Tiling) -> Iterator[Piece]:
    """Return the pieces of all workers, in the order in which they compute them."""
    fields = np.asarray(schedule.tile).tolist()
    tiles = [blocks_of(schedule, tiling, tile) for tile in range(len(fields))]
    for worker, row in enumerate(np.asarray(schedule.worker).tolist()):
        head, tile, begin, left, touched = row[:5]
        assert row[work.SHARE_FIELDS : work.FIRST_UNITS] == fields[tile]
        for _ in range(touched):
            stop = min(begin + left, max(len(tiles[tile]), 1))
            assert begin < stop
            yield Piece(worker, head, tile, begin, stop, tiles[tile][begin:stop])
            left -= stop - begin
            begin = 0
            head, tile = (head, tile + 1) if tile + 1 < len(tiles) else (head + 1, 0)
        assert left == 0


def blocks_of(schedule: Schedule, tiling: Tiling, tile: int) -> list[Block]:
    """Return a tile's blocks by position; those of one half each take turns."""
    per_block = tiling.block_tokens // tiling.unit_tokens
    row = np.asarray(schedule.tile)[tile].tolist()
    ends, counts = row[:4], row[4:]
    begins = [ends[0] - counts[WHOLE] * per_block, *ends[:3]]
    blocks = {
        kind: [
            Block(kind, tuple(schedule.unit[at : min(at + per_block, end)].tolist()))
            for at in range(begin, end, per_block)
        ]
        for kind, (begin, end) in enumerate(zip(begins, ends, strict=True))
    }
    assert [len(blocks[kind]) for kind in blocks] == counts
    halves = _take_turns(blocks[FIRST_HALF], blocks[SECOND_HALF])
    return [*blocks[WHOLE], *blocks[BOTH], *halves]


def _take_turns(first: list[Block], second: list[Block]) -> list[Block]:
    shared = min(len(first), len(second))
    pairs = chain.from_iterable(zip(first, second, strict=False))
    return [*pairs, *first[shared:], *second[shared:]]
