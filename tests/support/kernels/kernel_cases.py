"""What the Pallas kernels are lowered and compiled for, without a GPU."""

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable

import jax
import jax.numpy as jnp

from deft_jax.attention.grouping import Grouping, group_arrays
from deft_jax.attention.hopper import (
    DTYPES,
    HEAD_DIMS,
    make_spec,
    tree_attention_mosaic,
)
from deft_jax.attention.portable import tree_attention_mma
from deft_jax.attention.spec import Logits
from tests.support.attention_checks import Case
from tests.support.forest_plans import Limits
from tests.support.shapes import HEADS, Heads


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An implementation made of Pallas kernels.

    Attributes:
        attention: called with q, k_pages, v_pages, grouping and logits.
        product: PTX instruction of its matrix products, by which the attention kernel
            is told from the reduction.
        copy: PTX instruction that brings its pages.
        capability: compute capability it is compiled for.
    """

    attention: Callable[..., tuple[jax.Array, jax.Array]]
    product: str
    copy: str
    capability: tuple[int, int] = (9, 0)


KERNELS = {
    "hopper": Kernel(tree_attention_mosaic, "wgmma.mma_async", "cp.async.bulk.tensor"),
}


def _portable(capability: tuple[int, int]) -> Kernel:
    bulk = capability >= (9, 0)
    copy = "cp.async.bulk.tensor" if bulk else "cp.async.c"
    attention = functools.partial(tree_attention_mma, bulk=bulk)
    return Kernel(attention, "mma.sync", copy, capability)


PORTABLE = {
    f"mma_{major}_{minor}": _portable((major, minor))
    for major, minor in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0))
}
"""The portable kernels, by the compute capability they are compiled for."""

PAGE_SIZES = (16, 32, 64, 128)
GROUPS = (1, 3, 4, 8, 16, 64, 71)
ROWS = (1, 2, 24, 70, 130, 512)
OPTIONS = ({}, {"window": 100}, {"soft_cap": 30.0}, {"window": 9, "soft_cap": 50.0})


def kernel_case(
    heads: Heads, rows: int, page_size: int, dtype: str = "bfloat16", **options
) -> Case:
    """Return a case with few pages, which no kernel is specialised on."""
    limits = Limits(nodes=1, pages=40, page_size=page_size, rows=rows)
    return Case(heads, limits, dtype=dtype, **options)


def covering_cases() -> dict[str, Case]:
    """Return every head_dim with every page size, the rest spread over them."""
    pairs = list(itertools.product(HEAD_DIMS, PAGE_SIZES))
    rest = (
        _spread(x, len(pairs), seed)
        for seed, x in enumerate((GROUPS, ROWS, DTYPES, OPTIONS))
    )
    cases = {}
    for (head_dim, page_size), group, rows, dtype, options in zip(
        pairs, *rest, strict=True
    ):
        name = f"D{head_dim}-P{page_size}-G{group}-Q{rows}-{dtype}"
        name = "-".join([name, *options])
        heads = Heads(2 * group, 2, head_dim)
        cases[name] = kernel_case(heads, rows, page_size, dtype, **options)
    return cases


def _spread(values, count: int, seed: int) -> list:
    """Return `count` of the values in a random order, each about as often."""
    repeated = list(itertools.islice(itertools.cycle(values), count))
    random.Random(seed).shuffle(repeated)
    return repeated


COMPILED = {
    f"{name}-{rows}": kernel_case(HEADS[name], rows, page_size)
    for name, rows, page_size in (
        ("llama3_8b", 64, 64),
        ("llama3_8b", 1024, 16),
        ("smollm2_135m", 40, 16),
        ("phi2", 512, 32),
        ("phi3_mini", 130, 64),
        ("qwen3_235b_a22b", 300, 128),
        ("gemma_2b", 80, 64),
        ("gemma_2b", 8, 16),
    )
} | {
    "llama3_8b-window": kernel_case(HEADS["llama3_8b"], 512, 64, window=4096),
    "llama3_8b-soft_cap": kernel_case(HEADS["llama3_8b"], 512, 64, soft_cap=30.0),
    "llama3_8b-float16": kernel_case(HEADS["llama3_8b"], 1, 128, "float16"),
    "gemma_2b-window_and_soft_cap": kernel_case(
        HEADS["gemma_2b"], 40, 32, window=4096, soft_cap=50.0
    ),
    "group_of_71": kernel_case(Heads(71, 1, 64), 64, 64),
    "group_of_64": kernel_case(Heads(64, 1, 128), 9, 64, window=100),
}
"""The main configurations; each takes seconds to compile."""

PORTABLE_COMPILED = ("llama3_8b-64", "phi2-512", "gemma_2b-window_and_soft_cap")
"""Of `COMPILED`, those that the portable kernels are compiled for."""


Shape = jax.ShapeDtypeStruct


def arguments(case: Case) -> tuple[Shape, Shape, Shape, Grouping]:
    """Return q, k_pages, v_pages and grouping of a case, as shapes."""
    heads, limits = case.heads, case.limits
    dtype = jnp.dtype(case.dtype)
    slots = _int32(limits.pages, limits.page_size)
    rows, live = _int32(limits.rows), _int32()
    grouping = jax.eval_shape(group_arrays, slots, slots, slots, rows, live)
    q = jax.ShapeDtypeStruct((limits.rows, heads.num_q, heads.head_dim), dtype)
    shape = limits.pages, heads.num_kv, limits.page_size, heads.head_dim
    pages = jax.ShapeDtypeStruct(shape, dtype)
    return q, pages, pages, grouping


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def num_calls(case: Case, kernel: Kernel) -> int:
    """Count the kernels of one call: attention, and reduction unless it is fused."""
    if kernel.attention is not tree_attention_mosaic:
        return 2
    q, k_pages, *_ = arguments(case)
    logits = Logits(scale=1.0, window=case.window, soft_cap=case.soft_cap)
    return 1 if make_spec(q, k_pages, logits).fused else 2


def attention(case: Case, kernel: Kernel) -> Callable:
    """Return the op with a case's options, a function of what `arguments` describes."""
    scale = case.scale or case.heads.head_dim**-0.5
    logits = Logits(scale=scale, window=case.window, soft_cap=case.soft_cap)

    def attend(q, k_pages, v_pages, grouping):
        return kernel.attention(q, k_pages, v_pages, grouping, logits)

    return attend
