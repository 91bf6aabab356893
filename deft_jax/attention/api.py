"""The op: attention of every query token of a forest over the KV it sees."""

import dataclasses

import jax

from deft_jax.attention.backend import Backend
from deft_jax.attention.device import device_of, has_bulk_copies
from deft_jax.attention.grouping import Grouping
from deft_jax.attention.hopper import attend
from deft_jax.attention.plan import AttentionPlan, make_plan
from deft_jax.attention.portable import attend_portably
from deft_jax.attention.reference import tree_attention_reference
from deft_jax.attention.spec import DTYPES, AttentionSpec, Heads, may_store
from deft_jax.attention.xla import tree_attention_xla


def tree_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    grouping: Grouping | AttentionPlan,
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
            of K. Same dtype as q: float32, bfloat16 or float16; under float32 queries
            "xla" and "reference" read any of these.
        v_pages: [M, K, P, D], values.
        grouping: what each query sees, after the step's tokens were appended; or a plan
            of it from `plan_attention`, which layers share and which has the options.
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
        ValueError: shapes, dtypes or options do not fit each other or the plan.
        NotImplementedError: a gradient of "mosaic_gpu" was asked for.
    """
    options = (scale, window, soft_cap, implementation)
    if isinstance(grouping, AttentionPlan):
        _check_arrays(q, k_pages, v_pages, grouping.grouping)
        _check_plan(grouping, q, k_pages, options)
        return _attend(q, k_pages, v_pages, grouping)
    _check_arrays(q, k_pages, v_pages, grouping)
    spec = AttentionSpec.create(
        Heads(q.shape[1], k_pages.shape[1], q.shape[2]),
        q.dtype,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        kv_dtype=k_pages.dtype,
    )
    plan = make_plan(grouping, spec, implementation, device_of(q, k_pages))
    return _attend(q, k_pages, v_pages, plan)


def _attend(q, k_pages, v_pages, plan: AttentionPlan) -> tuple[jax.Array, jax.Array]:
    """Run what a plan is for on arrays that fit it."""
    kernels = plan.kernels
    if kernels is None:
        plain = (
            tree_attention_xla
            if plan.backend is Backend.XLA
            else tree_attention_reference
        )
        return plain(q, k_pages, v_pages, plan.grouping, plan.spec.logits)
    bulk = has_bulk_copies(device_of(q, k_pages))
    q, k_pages, v_pages = _without_gradient(q, k_pages, v_pages)
    if plan.backend is Backend.HOPPER:
        return attend(kernels.sizes, q, k_pages, v_pages, kernels.inputs)
    return attend_portably(
        kernels.sizes, q, k_pages, v_pages, kernels.inputs, bulk=bulk
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
    if k_pages.dtype != v_pages.dtype or not may_store(q.dtype, k_pages.dtype):
        raise ValueError(
            "q, k_pages and v_pages must share a dtype, or q be float32 over narrower "
            f"k_pages and v_pages, got {q.dtype}, {k_pages.dtype} and {v_pages.dtype}"
        )
    if q.dtype.name not in DTYPES:
        raise ValueError(f"q must be of dtype {', '.join(DTYPES)}, got {q.dtype}")


def _check_plan(plan: AttentionPlan, q, k_pages, options: tuple) -> None:
    """Check that arrays are those that a plan was made for, and come without options.

    Raises:
        ValueError: they are not.
    """
    if any(option is not None for option in options):
        raise ValueError(
            "a plan has its options: expected no scale, window, soft_cap or "
            "implementation beside it; give them to plan_attention"
        )
    spec = plan.spec
    planned = (*dataclasses.astuple(spec.heads), spec.dtype, spec.kv_dtype)
    found = (q.shape[1], *k_pages.shape[1::2], q.dtype.name, k_pages.dtype.name)
    if found != planned:
        raise ValueError(
            "the plan is for query heads, KV heads, head_dim, dtype and KV dtype "
            f"{planned}, got {found}"
        )
