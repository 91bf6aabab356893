"""How often each token is on the path of a row: what penalties look at."""

import jax
import jax.numpy as jnp

from deft_jax.attention.query_ranges import query_ranks, slot_ranges
from deft_jax.runtime.state import Rows
from deft_jax.tree.state import Tree


def count_tokens(tree: Tree, rows: Rows, vocab_size: int) -> jax.Array:
    """Return [B, V] int32, how often each token is on each row's path.

    Args:
        tree: the forest.
        rows: the growing branches.
        vocab_size: `V`.
    """
    number, rank = query_ranks(tree, rows.node)
    first, end = slot_ranges(tree, number)
    return _count_seen(tree, first, end, rank.shape[0], vocab_size)[rank]


def count_generated(tree: Tree, rows: Rows, vocab_size: int) -> jax.Array:
    """Return [B, V] int32, how often each token was generated on each row's path.

    A slot's token was generated if it lies behind the prompt. All ranks that see the
    slot are of one request, so that any of them knows the length of the prompt: the
    tokens on its path but for those that were generated.

    Args:
        tree: the forest.
        rows: the growing branches.
        vocab_size: `V`.
    """
    number, rank = query_ranks(tree, rows.node)
    first, end = slot_ranges(tree, number)
    node = jnp.minimum(rows.node, tree.num_nodes - 1)
    prompt = tree.start[node] + tree.count[node] - rows.generated
    prompt = jnp.zeros_like(prompt).at[rank].set(prompt)
    behind = prompt[jnp.minimum(first, prompt.shape[0] - 1)]
    end = jnp.where(tree.slot_position >= behind, end, first)
    return _count_seen(tree, first, end, rank.shape[0], vocab_size)[rank]


def _count_seen(
    tree: Tree, first: jax.Array, end: jax.Array, num_ranks: int, vocab_size: int
) -> jax.Array:
    """Return [B, V] int32, how many slots of each token every rank sees.

    Every slot marks where the ranks that see it begin and end; a prefix sum over ranks
    turns the marks into counts, so that no path is walked. With 3 ranks and one slot
    that the ranks 1 and 2 see, the marks of its token and their sums are

        0 1 0 -1  ->  0 1 1 0

    Args:
        tree: the forest.
        first: [M, P] int32, first rank that sees each slot.
        end: [M, P] int32, one past the last; none sees a slot where it is `first`.
        num_ranks: `B`.
        vocab_size: `V`.
    """
    first, end = first.ravel(), end.ravel()
    token = jnp.where(first < end, tree.slot_token.ravel(), vocab_size)
    marks = jnp.zeros((num_ranks + 1, vocab_size), jnp.int32)
    marks = marks.at[first, token].add(1, mode="drop")
    marks = marks.at[end, token].add(-1, mode="drop")
    return jnp.cumsum(marks, axis=0, dtype=jnp.int32)
