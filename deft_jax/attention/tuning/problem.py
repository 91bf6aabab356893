"""What tuned sizes are measured on: made-up trees over one pool of KV."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.attention.api import tree_attention
from deft_jax.attention.grouping import Grouping, group_arrays
from deft_jax.attention.spec import Heads

Levels = Sequence[tuple[int, int]]
"""Nodes of each level of a tree and the tokens of each."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Attention of one shape over several trees.

    Attributes:
        q: [Q, H, D], queries of every tree, by rank.
        k_pages: [M, K, P, D], keys for the largest tree, which all trees share.
        v_pages: [M, K, P, D], the values that belong to these keys.
        window: option of `tree_attention`, or None.
        trees: what each query sees in a tree, by the tree's name.
        expected: [Q, H, D] by name, what `tree_attention` gives through XLA.
    """

    q: jax.Array
    k_pages: jax.Array
    v_pages: jax.Array
    window: int | None
    trees: dict[str, Grouping]
    expected: dict[str, jax.Array]

    def error(self, name: str, out: jax.Array) -> float:
        """Return the relative error by norm of a result [Q, H, D] of a tree."""
        expected = self.expected[name].astype(jnp.float32)
        difference = jnp.linalg.norm((out.astype(jnp.float32) - expected).ravel())
        return float(difference / jnp.linalg.norm(expected.ravel()))


def tree_levels(num_queries: int) -> dict[str, Levels]:
    """Return trees of one query per leaf: short branches, long ones, more levels."""
    middle = max(num_queries // 8, 1)
    return {
        "prompt": [(1, 8192), (num_queries, 1)],
        "branches": [(1, 2048), (num_queries, 120)],
        "levels": [(1, 1024), (middle, 250), (num_queries, 60)],
    }


def make_problem(
    heads: Heads,
    levels: Mapping[str, Levels],
    *,
    page_size: int,
    dtype: str,
    window: int | None = None,
) -> Problem:
    """Make a problem with random queries, keys and values.

    Args:
        heads: heads of the attention.
        levels: trees by name, all with the same number of leaves, one query each.
        page_size: `P`.
        dtype: dtype of q, k and v.
        window: option of `tree_attention`, or None.
    """
    arrays = {name: level_arrays(of, page_size) for name, of in levels.items()}
    num_pages = max(len(slots[0]) for slots, _ in arrays.values())
    [num_queries] = {len(positions) for _, positions in arrays.values()}
    trees = {
        name: group_arrays(
            *(np.pad(x, ((0, num_pages - len(x)), (0, 0))) for x in slots),
            query_position=positions,
            num_live=num_queries,
        )
        for name, (slots, positions) in arrays.items()
    }
    pages = (num_pages, heads.num_kv, page_size, heads.head_dim)
    shapes = [(num_queries, heads.num_q, heads.head_dim), pages, pages]
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, shapes, strict=True)
    )
    attend = jax.jit(
        functools.partial(tree_attention, window=window, implementation="xla")
    )
    expected = {name: attend(q, k, v, tree)[0] for name, tree in trees.items()}
    return Problem(q, k, v, window, trees, expected)


def level_arrays(levels: Levels, page_size: int):
    """Make a tree as plain arrays: children spread evenly, pages in any order.

    Args:
        levels: nodes and tokens of each level; the last one has a query per node.
        page_size: `P`.

    Returns:
        slot_first, slot_end and slot_position, [M, P] int32 each, and query_position
        [Q] int32, as `group_arrays` takes them.
    """
    num_queries = levels[-1][0]
    parts, depth = [], 0
    for nodes, tokens in levels:
        bound = np.arange(nodes + 1) * num_queries // nodes
        index = np.arange(-(-tokens // page_size) * page_size)
        held = index < tokens
        position = (depth + index) * held
        fields = (bound[:-1, None] * held, bound[1:, None] * held, position)
        parts.append([np.broadcast_to(x, (nodes, len(index))) for x in fields])
        depth += tokens
    slots = [
        np.concatenate([x.reshape(-1, page_size) for x in field])
        for field in zip(*parts, strict=True)
    ]
    shuffled = np.random.default_rng(0).permutation(len(slots[0]))
    positions = np.full(num_queries, depth - 1, np.int32)
    return [x[shuffled].astype(np.int32) for x in slots], positions
