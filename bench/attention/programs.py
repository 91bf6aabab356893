"""The compiled functions that the attention benchmark calls for one tree."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.attention import hopper as mosaic
from deft_jax.attention.api import tree_attention
from deft_jax.attention.grouping import Grouping, group
from deft_jax.attention.kernel_inputs import prepare
from deft_jax.attention.schedule import partial_bytes
from deft_jax.attention.spec import Logits
from deft_jax.tree.appending import Slots
from deft_jax.tree.state import Tree

from ..trees.level_tree import level_tree
from .cases import Case

DTYPE = jnp.dtype(jnp.bfloat16)
MULTIPROCESSORS = 132
"""Of an H100; the kernels' workers."""

ORACLE_QUERIES = 64
ORACLE_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""The oracle is run once: looking for its best products takes longer than any."""

LOOP_CALLS = 100

_LOWERING = threading.Lock()
"""Tracing holds the interpreter anyway, and kernels' lowering need not expect threads.
"""


@dataclasses.dataclass(frozen=True)
class Steps:
    """An implementation of tree attention in two halves.

    Attributes:
        prepare: from the grouping, once per step for all layers.
        attend: (q, k_pages, v_pages, what was prepared) to (out, lse), per layer.
        partial_bytes: from what was prepared, bytes of partial results that `attend`
            writes; None if the implementation does not tell.
    """

    prepare: Callable[[Grouping], Any]
    attend: Callable[[Any, Any, Any, Any], tuple[jax.Array, jax.Array]]
    partial_bytes: Callable[[Any], int | None]


def make_steps(implementation: str, q, k_pages) -> Steps:
    """Return the two halves of an implementation of `tree_attention`.

    Args:
        implementation: "mosaic_gpu", or another one that `tree_attention` knows.
        q: [Q, H, D], shape and dtype are used.
        k_pages: [M, K, P, D], shape is used.
    """
    if implementation == "mosaic_gpu":
        return _mosaic_steps(q, k_pages)

    def attend(q, k_pages, v_pages, grouping):
        return tree_attention(
            q, k_pages, v_pages, grouping, implementation=implementation
        )

    return Steps(lambda grouping: grouping, attend, lambda prepared: None)


def _mosaic_steps(q, k_pages) -> Steps:
    plain = Logits.plain(q.shape[-1])
    spec = mosaic.make_spec(q, k_pages, plain, num_workers=MULTIPROCESSORS)
    return Steps(
        prepare=lambda grouping: prepare(grouping, spec),
        attend=lambda q, k, v, prepared: mosaic.attend(spec, q, k, v, prepared),
        partial_bytes=lambda prepared: int(partial_bytes(spec, prepared[-1])),
    )


@dataclasses.dataclass(frozen=True)
class Programs:
    """A tree, and compiled functions over it.

    Attributes:
        tree: the case's tree.
        slots: pages and slots of the tree's queries.
        steps: the implementation that is measured.
        data: (key) to q, k_pages and v_pages.
        prepare: (tree, slots) to what the attention needs: grouping and preparation.
        attend: (q, k_pages, v_pages, prepared) to (out, lse).
        error: (tree, slots, q, k_pages, v_pages, out) to the relative error of out;
            None if it is not wanted.
        loop: (tree, slots, q, k_pages, v_pages) to the last of LOOP_CALLS results, each
            of which the next call depends on; None if it is not wanted.
    """

    tree: Tree
    slots: Slots
    steps: Steps
    data: Callable
    prepare: Callable
    attend: Callable
    error: Callable | None = None
    loop: Callable | None = None


def build(
    case: Case, implementation: str, page_size: int, loop: bool, check: bool = True
) -> Programs:
    """Build a case's tree and compile what is called for it, without running it.

    May be called from several threads: XLA's compiler runs in parallel.

    Args:
        case: the tree and its heads.
        implementation: name of what runs tree attention.
        page_size: `P`.
        loop: whether `Programs.loop` is wanted.
        check: whether `Programs.error` is wanted, which takes longest.
    """
    tree, slots = level_tree(
        case.nodes, case.tokens_per_node, page_size, drafts=case.drafts
    )
    with _LOWERING:
        steps, lowered = _lower(case, tree, slots, implementation)
        for name, wanted in [("loop", loop), ("error", check)]:
            if not wanted:
                del lowered[name]
    options = {"error": ORACLE_OPTIONS}
    compiled = {
        name: program.compile(options.get(name)) for name, program in lowered.items()
    }
    return Programs(tree=tree, slots=slots, steps=steps, **compiled)


def _lower(case: Case, tree: Tree, slots: Slots, implementation: str):
    """Return the implementation, and the functions of `Programs` lowered by name."""
    data = jax.jit(lambda key: random_data(key, case, tree))
    key = jax.random.key(0)
    q, k, v = jax.eval_shape(data, key)
    steps = make_steps(implementation, q, k)
    # Returns nothing but what was prepared, so that no unused list is made and timed.
    prepare = jax.jit(lambda tree, slots: steps.prepare(group(tree, slots)))
    prepared = jax.eval_shape(prepare, tree, slots)
    often = jax.jit(lambda *args: _attend_often(steps, *args))
    return steps, {
        "data": data.lower(key),
        "prepare": prepare.lower(tree, slots),
        "attend": jax.jit(steps.attend).lower(q, k, v, prepared),
        "error": jax.jit(relative_error).lower(tree, slots, q, k, v, q),
        "loop": often.lower(tree, slots, q, k, v),
    }


def random_data(key: jax.Array, case: Case, tree: Tree) -> list[jax.Array]:
    """Draw q [Q, H, D], k_pages and v_pages [M, K, P, D] in DTYPE, all normal."""
    pages = (tree.num_pages, case.num_kv_heads, tree.page_size, case.head_dim)
    shapes = [(case.leaves, case.num_q_heads, case.head_dim), pages, pages]
    keys = jax.random.split(key, 3)
    return [jax.random.normal(keys[i], shapes[i], DTYPE) for i in range(3)]


def _attend_often(steps: Steps, tree: Tree, slots: Slots, q, k_pages, v_pages):
    """Group, prepare and attend LOOP_CALLS times; a result is the next call's q."""

    def call(_, q):
        # The barrier makes the tree depend on the last result too: nothing that
        # follows from the tree alone may be computed before the loop.
        now, at, q = lax.optimization_barrier((tree, slots, q))
        prepared = steps.prepare(group(now, at))
        return steps.attend(q, k_pages, v_pages, prepared)[0]

    return lax.fori_loop(0, LOOP_CALLS, call, q)


def relative_error(tree: Tree, slots: Slots, q, k_pages, v_pages, out) -> jax.Array:
    """Return [] float32, the relative error of `out` by norm against the oracle."""
    expected = oracle(q, k_pages, v_pages, group(tree, slots))
    difference = out.astype(jnp.float32) - expected
    return jnp.linalg.norm(difference.ravel()) / jnp.linalg.norm(expected.ravel())


def oracle(q, k_pages, v_pages, grouping: Grouping) -> jax.Array:
    """Run the float32 reference, one KV head and ORACLE_QUERIES queries at a time.

    Args:
        q: [Q, H, D], in rank order.
        k_pages: [M, K, P, D].
        v_pages: [M, K, P, D].
        grouping: what the step's queries see.

    Returns:
        [Q, H, D] float32.
    """
    num_queries, num_q_heads, head_dim = q.shape
    num_kv_heads = k_pages.shape[1]
    num_blocks = -(-num_queries // ORACLE_QUERIES)
    padding = num_blocks * ORACLE_QUERIES - num_queries
    position = jnp.pad(grouping.query_position, (0, padding))
    q = jnp.pad(q.astype(jnp.float32), ((0, padding), (0, 0), (0, 0)))
    q = q.reshape(num_blocks, ORACLE_QUERIES, num_kv_heads, -1, head_dim)

    def attend(index):
        head, block = index // num_blocks, index % num_blocks
        k, v = (
            lax.dynamic_slice_in_dim(pages, head, 1, axis=1).astype(jnp.float32)
            for pages in (k_pages, v_pages)
        )
        seen = _block_of(grouping, position, block * ORACLE_QUERIES)
        return tree_attention(
            q[block, :, head], k, v, seen, implementation="reference"
        )[0]

    outs = lax.map(attend, jnp.arange(num_kv_heads * num_blocks, dtype=jnp.int32))
    outs = outs.reshape(num_kv_heads, num_blocks * ORACLE_QUERIES, -1, head_dim)
    outs = outs.transpose(1, 0, 2, 3)[:num_queries]
    return outs.reshape(num_queries, num_q_heads, head_dim)


def _block_of(grouping: Grouping, position: jax.Array, start: jax.Array) -> Grouping:
    """Return the grouping of ORACLE_QUERIES ranks from `start` on, for the oracle."""
    rank = jnp.arange(ORACLE_QUERIES, dtype=jnp.int32)
    return dataclasses.replace(
        grouping,
        order=rank,
        rank=rank,
        query_position=lax.dynamic_slice_in_dim(position, start, ORACLE_QUERIES),
        slot_first=grouping.slot_first - start,
        slot_end=grouping.slot_end - start,
    )
