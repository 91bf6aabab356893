"""Tree attention with the Pallas Mosaic GPU kernels for Hopper."""

import math
from dataclasses import replace

import jax

from deft_jax.attention.device import Device, device_of, gpu_kind
from deft_jax.attention.grouping import Grouping
from deft_jax.attention.kernel_inputs import prepare
from deft_jax.attention.schedule import head_chunks
from deft_jax.attention.spec import Logits
from deft_jax.attention.tuned_sizes import Key, lookup
from deft_jax.pallas_kernels.kernel_spec import (
    COPY_BYTES,
    MAX_QUERIES,
    SHARED_BYTES,
    TILE_ROWS,
    KernelConfig,
    KernelSpec,
)

HEAD_DIMS = (64, 80, 96, 128, 256)
DTYPES = ("bfloat16", "float16")
MIN_UNIT = 16
FEW_ROWS = 256
"""Rows of queries up to which shorter blocks are faster."""

EVEN_SHARE = 0.95
"""Part of the multiprocessors that suffices to read at the memory's speed."""

DEFAULT_WORKERS = 132
"""Multiprocessors of an H100, where no GPU says otherwise."""


def tree_attention_mosaic(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    grouping: Grouping,
    attention: Logits,
    *,
    config: KernelConfig | None = None,
    num_workers: int | None = None,
    interpret=None,
) -> tuple[jax.Array, jax.Array]:
    """Attend over the pages with the kernels for Hopper.

    Args:
        q: [Q, H, D], queries in rank order.
        k_pages: [M, K, P, D], keys.
        v_pages: [M, K, P, D], values.
        grouping: what each query sees.
        attention: scale, window and soft cap of the logits.
        config: tuned sizes, by default the ones that `make_spec` chooses.
        num_workers: multiprocessors to use.
        interpret: parameters of the Mosaic GPU interpreter, None on a GPU.

    Returns:
        out: [Q, H, D] in q's dtype; zeros for queries that see nothing.
        lse: [Q, H] float32, natural log of the sum of exponentials; -inf there.
    """
    spec = make_spec(q, k_pages, attention, config=config, num_workers=num_workers)
    with jax.named_scope("grouping"):
        prepared = prepare(grouping, spec)
    return attend(spec, q, k_pages, v_pages, prepared, interpret=interpret)


def unsupported(
    q: jax.Array | jax.ShapeDtypeStruct, k_pages: jax.Array | jax.ShapeDtypeStruct
) -> str | None:
    """Say why the kernels do not take these arrays; None if they do."""
    page_size = k_pages.shape[2]
    if k_pages.dtype != q.dtype:
        return f"keys and values are {k_pages.dtype} under queries of {q.dtype}"
    if q.dtype.name not in DTYPES:
        return f"dtype {q.dtype} is none of {', '.join(DTYPES)}"
    if q.shape[2] not in HEAD_DIMS:
        return f"head_dim {q.shape[2]} is none of {', '.join(map(str, HEAD_DIMS))}"
    if page_size % MIN_UNIT:
        return f"page size {page_size} is no multiple of {MIN_UNIT}"
    if q.shape[0] > MAX_QUERIES:
        return f"{q.shape[0]} query tokens are more than {MAX_QUERIES}"
    return None


def make_spec(
    q: jax.Array | jax.ShapeDtypeStruct,
    k_pages: jax.Array | jax.ShapeDtypeStruct,
    attention: Logits,
    *,
    config: KernelConfig | None = None,
    num_workers: int | None = None,
    device: Device | None = None,
) -> KernelSpec:
    """Return the static sizes of the kernels for arrays of these shapes.

    Args:
        q: [Q, H, D], shape and dtype are used.
        k_pages: [M, K, P, D], shape is used.
        attention: scale, window and soft cap of the logits.
        config: tuned sizes; by default those of `tuned_sizes` for the device, else
            `default_config`.
        num_workers: multiprocessors to use.
        device: where the kernels run, by default where the arrays lie.

    Raises:
        DeftError: a table of tuned sizes cannot be read.
    """
    num_queries, num_q_heads, head_dim = q.shape
    num_kv_heads, page_size = k_pages.shape[1:3]
    group = num_q_heads // num_kv_heads
    row_bytes = head_dim * q.dtype.itemsize
    chunks = head_chunks(group, TILE_ROWS, lambda heads: copied(heads * row_bytes))
    group //= chunks
    step = copied(group * row_bytes)
    most = TILE_ROWS // group // step * step
    # Two warpgroups of 256 columns do not fit the shared memory.
    halves = 1 if num_queries <= most or head_dim > 128 else 2
    num_tiles = -(-num_queries // (most * halves))
    # Tiles of one size, so that none has few rows in use.
    half_queries = -(-num_queries // (num_tiles * halves * step)) * step
    spec = KernelSpec(
        num_queries=num_queries,
        num_kv_heads=num_kv_heads * chunks,
        group=group,
        head_dim=head_dim,
        page_size=page_size,
        half_queries=half_queries,
        halves=halves,
        num_workers=even_workers(
            num_workers or DEFAULT_WORKERS, num_kv_heads * chunks * num_tiles
        ),
        dtype=q.dtype.name,
        scale=attention.scale,
        window=attention.window,
        soft_cap=attention.soft_cap,
        head_chunks=chunks,
    )
    kind = gpu_kind(device or device_of(q, k_pages))
    return replace(spec, config=config or _choose_config(spec, kind))


def copied(query_bytes: int) -> int:
    """Return the least number of queries that one copy can move.

    A copy moves a multiple of 128 bytes: of queries of 384 bytes one, of 192 bytes two.

    Args:
        query_bytes: bytes of a query's heads together.
    """
    return COPY_BYTES // math.gcd(COPY_BYTES, query_bytes)


def even_workers(most: int, num_pairs: int) -> int:
    """Return the workers to use: some fewer than `most` if shares end with tiles then.

    Tiles of about one size are then cut into fewer pieces, if at all, and workers that
    read the same KV for different tiles do so at the same time.
    """
    enough = range(most, int(EVEN_SHARE * most), -1)
    even = (w for w in enough if w % num_pairs == 0 or num_pairs % w == 0)
    return next(even, most)


def _choose_config(spec: KernelSpec, kind: str | None) -> KernelConfig:
    """Return the tuned sizes, the default ones or small ones: the first that fit.

    Queries of groups such as 40, which leave rows of a tile empty, need more room.
    """
    key = Key.of(spec)
    rows = spec.num_queries * spec.group
    for config in (
        None if kind is None else lookup(kind, key),
        default_config(spec.head_dim, rows, key.windowed),
        KernelConfig(block_tokens=64, stages=2),
    ):
        if config and replace(spec, config=config).shared_bytes <= SHARED_BYTES:
            return config
    return KernelConfig(block_tokens=64, stages=1)


def default_config(head_dim: int, rows: int, windowed: bool) -> KernelConfig:
    """Return the sizes to use where nothing was tuned.

    Long blocks where there is enough work for the matrix units, but where registers do
    not hold them. More stages only delay the first block (bench/NOTES.md).
    """
    few_rows = rows <= FEW_ROWS
    if few_rows or head_dim > 128 or (windowed and head_dim > 96):
        return KernelConfig(block_tokens=64, stages=2)
    return KernelConfig(block_tokens=128, stages=2)


def attend(
    spec: KernelSpec,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    prepared,
    *,
    interpret=None,
) -> tuple[jax.Array, jax.Array]:
    """Run the kernels of one layer on what `prepare` returned for the step.

    Args:
        spec: what the kernels are compiled for.
        q: [Q, H, D], queries in rank order.
        k_pages: [M, K, P, D], keys.
        v_pages: [M, K, P, D], values.
        prepared: masks, positions, live queries and schedule.
        interpret: parameters of the Mosaic GPU interpreter, None on a GPU.

    Returns:
        out: [Q, H, D] in q's dtype; zeros for queries that see nothing.
        lse: [Q, H] float32, natural log of the sum of exponentials; -inf there.
    """
    # Imported where it runs: Mosaic takes long to import, and no CPU needs it.
    from deft_jax.pallas_kernels.grouped_partial_attention.hopper import (
        grouped_partial_attention,
    )
    from deft_jax.pallas_kernels.tree_reduction.hopper import tree_reduction

    masks, positions, live, schedule = prepared
    rows = (spec.num_queries, spec.num_kv_heads, spec.group)
    out, lse, part_out, part_lse = grouped_partial_attention(
        spec,
        q.reshape(*rows, spec.head_dim),
        k_pages,
        v_pages,
        masks,
        positions,
        schedule.unit,
        schedule.tile,
        schedule.worker,
        schedule.flags,
        interpret=interpret,
    )
    if not spec.fused:
        out, lse = tree_reduction(
            spec,
            part_out,
            part_lse,
            schedule.pieces,
            live,
            out,
            lse,
            interpret=interpret,
        )
    return out.reshape(q.shape), lse.reshape(q.shape[:2])
