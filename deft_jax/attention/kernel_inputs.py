"""What the GPU kernels need to know of a step: masks, positions and work lists."""

import jax
import jax.numpy as jnp

from deft_jax.attention.grouping import Grouping
from deft_jax.attention.schedule import Schedule, make_schedule
from deft_jax.attention.spec import Tiling
from deft_jax.attention.units import query_positions
from deft_jax.pallas_kernels.kernel_spec import TILE_ROWS, KernelSpec

Inputs = tuple[jax.Array, jax.Array, jax.Array, Schedule]


def prepare(
    grouping: Grouping,
    spec: KernelSpec,
    rows: int = TILE_ROWS,
    schedule: Schedule | None = None,
) -> Inputs:
    """Return what the kernels need to know of a step, for all layers of these sizes.

    Args:
        grouping: what each query of the step sees.
        spec: what the kernels are compiled for.
        rows: matrix rows of a tile's half.
        schedule: the work lists, by default those of `make_schedule`.

    Returns:
        The arguments of `grouped_partial_attention` but for queries, keys and values:
        masks [M * P // U + 1, mask_fields, U], row positions [T, halves, rows] and live
        queries [1], all int32, and the schedule.
    """
    tiling = tiling_of(spec)
    schedule = schedule or make_schedule(grouping, tiling, window=spec.window)
    positions = _row_positions(grouping, spec, tiling, rows)
    return _masks(grouping, spec), positions, grouping.num_live[None], schedule


def tiling_of(spec: KernelSpec) -> Tiling:
    """Return the sizes that work lists depend on."""
    return Tiling(
        half_queries=spec.half_queries,
        halves=spec.halves,
        unit_tokens=spec.config.unit_tokens,
        block_tokens=spec.config.block_tokens,
        num_kv_heads=spec.num_kv_heads,
        num_workers=spec.num_workers,
    )


def _masks(grouping: Grouping, spec: KernelSpec) -> jax.Array:
    """Return the masks of all units, and of one more that nobody sees.

    A range of ranks is one int32, the end in its upper half: 3:5 is 0x00050003.
    """
    ranks = grouping.slot_first | (grouping.slot_end << 16)
    if spec.window is not None:
        # Kernels shield tokens of empty ranges, whatever the slots hold.
        least = _least_position(grouping)
        hidden = least - grouping.slot_position >= spec.window
        ranks = jnp.where(hidden, 0, ranks)
    fields = (ranks, grouping.slot_position)[: spec.mask_fields]
    units = [x.reshape(-1, spec.config.unit_tokens) for x in fields]
    return jnp.pad(jnp.stack(units, axis=1), ((0, 1), (0, 0), (0, 0)))


def _least_position(grouping: Grouping) -> jax.Array:
    """Return [M, P] int32, the least position of the queries in each token's range.

    Row `j` of a table has the least of `2 ** j` positions from each on, so two entries
    cover any range: of positions 7 5 6 9, ranks 0:3 are 0:2 and 1:3, so min(5, 5).
    """
    table = [grouping.query_position]
    last = len(table[0]) - 1
    for level in range(last.bit_length()):
        later = jnp.minimum(jnp.arange(last + 1) + (1 << level), last)
        table.append(jnp.minimum(table[-1], table[-1][later]))
    first, end = grouping.slot_first, grouping.slot_end
    level = 31 - jax.lax.clz(jnp.maximum(end - first, 1))
    begins = jnp.stack([first, jnp.maximum(end - (1 << level), 0)])
    return jnp.stack(table)[level, jnp.minimum(begins, last)].min(axis=0)


def _row_positions(grouping: Grouping, spec: KernelSpec, tiling: Tiling, rows: int):
    """Return the position of each matrix row's query; zeros without a window."""
    shape = spec.num_tiles, spec.halves, rows
    if spec.window is None:
        return jnp.zeros(shape, jnp.int32)
    each = jnp.repeat(query_positions(grouping, tiling), spec.group, axis=1)
    return jnp.pad(each, ((0, 0), (0, rows - each.shape[1]))).reshape(shape)
