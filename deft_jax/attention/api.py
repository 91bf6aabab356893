"""The op: attention of every query token of a forest over the KV it sees."""

import math
import numbers

import jax

from deft_jax.attention.backend import Backend, choose_backend
from deft_jax.attention.checks import whole_number
from deft_jax.attention.device import device_of, has_bulk_copies, num_multiprocessors
from deft_jax.attention.grouping import Grouping
from deft_jax.attention.hopper import tree_attention_mosaic
from deft_jax.attention.portable import tree_attention_mma
from deft_jax.attention.reference import tree_attention_reference
from deft_jax.attention.spec import AttentionSpec
from deft_jax.attention.xla import tree_attention_xla

DTYPES = ("float32", "bfloat16", "float16")


def tree_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    grouping: Grouping,
    *,
    scale: float | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attend over a forest, reading the KV of shared prefixes once.

    Equivalent to `grouped_partial_attention_reference` over all slots of the pool,
    which states the formula (DeFT, arXiv 2404.00242, section 3). What a slot holds that
    no query sees does not matter, be it NaN or infinite.

    With "xla" and "reference" the result can be differentiated with respect to q,
    k_pages and v_pages. The gradient is the reference's: it takes memory and time for
    every pair of a query and a slot of the pool, `Q * H * M * P` numbers.

    Args:
        q: [Q, H, D], queries in rank order (row `grouping.order[r]` at rank `r`).
        k_pages: [M, K, P, D], keys, the step's own tokens written; H is a multiple
            of K. Same dtype as q: float32, bfloat16 or float16.
        v_pages: [M, K, P, D], values.
        grouping: what each query sees, after the step's tokens were appended.
        scale: factor of the logits, above 0; `D ** -0.5` by default.
        window: a query sees only tokens less than this many positions back along its
            path, itself counted.
        soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`.
        implementation: "mosaic_gpu" (Pallas kernels for NVIDIA GPUs: bfloat16 or
            float16, head_dim 64, 80, 96, 128 or 256, pages of a multiple of 16), "xla"
            (any device), "reference" (the float32 oracle), or None for the best: the
            kernels on compute capability 9.0 where they take the arrays, else "xla".
            Asked for by name, they also serve 8.0 to 10.0, where they are compiled in
            tests and have not been run.

    Returns:
        out: [Q, H, D] in q's dtype; zeros for queries that see nothing.
        lse: [Q, H] float32, natural log of the sum of exponentials; -inf there.

    Raises:
        ValueError: shapes, dtypes or options do not fit each other.
        NotImplementedError: a gradient of "mosaic_gpu" was asked for.
    """
    _check_arrays(q, k_pages, v_pages, grouping)
    spec = _check_options(q.shape[2], scale, window, soft_cap)
    backend = choose_backend(implementation, q, k_pages)
    return _BACKENDS[backend](q, k_pages, v_pages, grouping, spec)


def _attend_on_hopper(q, k_pages, v_pages, grouping, spec):
    workers = num_multiprocessors(device_of(q, k_pages))
    q, k_pages, v_pages = _without_gradient(q, k_pages, v_pages)
    return tree_attention_mosaic(
        q, k_pages, v_pages, grouping, spec, num_workers=workers
    )


def _attend_portably(q, k_pages, v_pages, grouping, spec):
    device = device_of(q, k_pages)
    bulk, workers = has_bulk_copies(device), num_multiprocessors(device)
    q, k_pages, v_pages = _without_gradient(q, k_pages, v_pages)
    return tree_attention_mma(
        q, k_pages, v_pages, grouping, spec, bulk=bulk, num_workers=workers
    )


@jax.custom_jvp
def _without_gradient(*arrays):
    """Return the arrays; where they are differentiated, raise one clear line.

    The kernels themselves cannot have such a rule: they hold references.
    """
    return arrays


@_without_gradient.defjvp
def _refuse(primals, tangents):
    raise NotImplementedError(
        "implementation 'mosaic_gpu' has no gradient; differentiate tree_attention "
        "with implementation='xla'"
    )


_BACKENDS = {
    Backend.HOPPER: _attend_on_hopper,
    Backend.PORTABLE: _attend_portably,
    Backend.XLA: tree_attention_xla,
    Backend.REFERENCE: tree_attention_reference,
}
"""What runs on each backend, called with q, k_pages, v_pages, grouping and spec."""


def _check_arrays(q, k_pages, v_pages, grouping) -> None:
    """Check that the arrays fit each other.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if q.ndim != 3 or k_pages.ndim != 4:
        raise ValueError(
            "q must be [queries, heads, head_dim] and k_pages [pages, heads, "
            f"page_size, head_dim], got {q.shape} and {k_pages.shape}"
        )
    if k_pages.shape != v_pages.shape:
        raise ValueError(
            f"k_pages and v_pages must have one shape, got {k_pages.shape} and "
            f"{v_pages.shape}"
        )
    if q.shape[2] != k_pages.shape[3] or q.shape[1] % k_pages.shape[1]:
        raise ValueError(
            "q must have the pages' head_dim and a multiple of their heads "
            f"({k_pages.shape[3]} and {k_pages.shape[1]}), got {q.shape[2]} and "
            f"{q.shape[1]}"
        )
    slots = (k_pages.shape[0], k_pages.shape[2])
    if grouping.num_queries != q.shape[0] or grouping.slot_first.shape != slots:
        raise ValueError(
            f"grouping is for {grouping.num_queries} queries and pages of "
            f"{grouping.slot_first.shape}, got {q.shape[0]} queries and {slots}"
        )
    if not (q.dtype == k_pages.dtype == v_pages.dtype):
        raise ValueError(
            f"q, k_pages and v_pages must share a dtype, got {q.dtype}, "
            f"{k_pages.dtype} and {v_pages.dtype}"
        )
    if q.dtype.name not in DTYPES:
        raise ValueError(f"q must be of dtype {', '.join(DTYPES)}, got {q.dtype}")


def _check_options(head_dim: int, scale, window, soft_cap) -> AttentionSpec:
    """Return the spec that the options describe.

    Raises:
        ValueError: an option is no number, or out of its range.
    """
    for name, value in (("scale", scale), ("soft_cap", soft_cap)):
        if value is None:
            continue
        if not _is_number(value):
            raise ValueError(f"{name} must be a number above 0 or None, got {value!r}")
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if window is not None:
        window = whole_number("window", window)
    return AttentionSpec(
        scale=1 / math.sqrt(head_dim) if scale is None else float(scale),
        window=window,
        soft_cap=None if soft_cap is None else float(soft_cap),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
