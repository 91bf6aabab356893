"""Tree attention in a loop of one's own: decode a tree with a network of a few lines.

    python examples/attention_loop.py

A prompt is read once, branches grow from its end, and one of them branches again. Each
step stores the KV of its tokens in shared pages and attends over the tree; nothing is
copied when a branch is made. At the end every branch is computed once more as a
sequence of its own, with plain softmax attention, and the two are compared.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax import (
    NO_NODE,
    LayerKV,
    Tree,
    append,
    branch,
    create_pool,
    group,
    tree_attention,
    write,
)

VOCABULARY, WIDTH, LAYERS = 96, 64, 2
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
NODES, PAGES, PAGE_SIZE, ROWS = 16, 32, 16, 16
MAX_ERROR = 1e-3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of a network without norms and MLPs, to keep the example short.

    Attributes:
        embedding: [V, E] float32, one row per token.
        qkv: [L, E, (H + 2 K) D] float32, query, key and value projections.
        out: [L, H D, E] float32, output projections.
        head: [E, V] float32, gives the logits.
    """

    embedding: jax.Array
    qkv: jax.Array
    out: jax.Array
    head: jax.Array


def random_weights(seed: int) -> Weights:
    """Return weights that make attention matter."""
    shapes = (
        (VOCABULARY, WIDTH),
        (LAYERS, WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
        (LAYERS, HEADS * HEAD_DIM, WIDTH),
        (WIDTH, VOCABULARY),
    )
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    normal = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    return Weights(normal[0], *(x / WIDTH**0.5 for x in normal[1:]))


def project(weights: Weights, layer: int, x: jax.Array, position: jax.Array):
    """Return q [Q, H, D], k [Q, K, D] and v [Q, K, D] of rows x [Q, E]."""
    heads = (x @ weights.qkv[layer]).reshape(len(x), -1, HEAD_DIM)
    q, k, v = jnp.split(heads, (HEADS, HEADS + KV_HEADS), axis=1)
    # A rotation of pairs by an angle per position, so that distances count.
    speed = 100.0 ** -jnp.linspace(0, 1, HEAD_DIM // 2)
    angle = position.astype(jnp.float32)[:, None, None] * speed[None, None]

    def rotate(x):
        low, high = jnp.split(x, 2, axis=-1)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1)

    return rotate(q), rotate(k), v


@functools.partial(jax.jit, donate_argnames="pool")
def step(weights: Weights, tree: Tree, pool: tuple[LayerKV, ...], node, token):
    """Feed one token per row and return the tokens that follow.

    Args:
        weights: the network's weights.
        tree: the forest.
        pool: pages of each layer, written in place.
        node: [Q] int32, node that each row's token is appended to; N for idle rows.
        token: [Q] int32, the tokens.

    Returns:
        The tree, the pool, and logits [Q, V] by row.
    """
    tree, slots = append(tree, node, token)
    grouping = group(tree, slots)
    # Queries are attended in rank order, in which those that share KV are neighbours.
    order, layers = grouping.order, []
    x = weights.embedding[token[order]]
    for index, layer in enumerate(pool):
        q, k, v = project(weights, index, x, grouping.query_position)
        layer = write(layer, slots.page[order], slots.slot[order], k, v)
        mixed, _ = tree_attention(q, layer.k, layer.v, grouping)
        x = x + mixed.reshape(len(x), -1) @ weights.out[index]
        layers.append(layer)
    logits = x @ weights.head
    return tree, tuple(layers), logits[grouping.rank]


def fork(tree: Tree, parent: int, count: int) -> tuple[Tree, list[int]]:
    """Return the tree with new children of a node, and their numbers."""
    row = jnp.arange(ROWS)
    tree, made = branch(tree, jnp.full(ROWS, parent), row < count)
    return tree, made[:count].tolist()


def rows_for(nodes, tokens) -> tuple[jax.Array, jax.Array]:
    """Return nodes and tokens as full rows; the rest is idle."""
    idle = ROWS - len(nodes)
    node = jnp.array([*nodes, *[NODES] * idle], jnp.int32)
    return node, jnp.array([*tokens, *[0] * idle], jnp.int32)


def sequence_logits(weights: Weights, tokens: list[int]) -> jax.Array:
    """Return logits [V] of what follows a sequence, with plain softmax attention."""
    x, position = weights.embedding[jnp.array(tokens)], jnp.arange(len(tokens))
    for layer in range(LAYERS):
        q, k, v = project(weights, layer, x, position)
        k, v = (jnp.repeat(y, HEADS // KV_HEADS, axis=1) for y in (k, v))
        scores = jnp.einsum("qhd,khd->hqk", q, k) / HEAD_DIM**0.5
        causal = position[:, None] >= position[None]
        share = jax.nn.softmax(jnp.where(causal[None], scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("hqk,khd->qhd", share, v)
        x = x + mixed.reshape(len(x), -1) @ weights.out[layer]
    return x[-1] @ weights.head


def main() -> None:
    """Grow a tree and compare each branch with a sequence of its own."""
    weights = random_weights(seed=0)
    tree = Tree.create(NODES, PAGES, PAGE_SIZE)
    pool = create_pool(LAYERS, PAGES, KV_HEADS, PAGE_SIZE, HEAD_DIM, jnp.float32)

    prompt = [3, 14, 15, 92, 65, 35]
    tree, [root] = fork(tree, NO_NODE, 1)
    tree, pool, logits = step(
        weights, tree, pool, *rows_for([root] * len(prompt), prompt)
    )

    # Three branches begin with the likeliest tokens; each then grows greedily.
    tree, leaves = fork(tree, root, 3)
    following = np.argsort(-np.asarray(logits[len(prompt) - 1]))[:3].tolist()
    paths = {leaf: [*prompt, following[i]] for i, leaf in enumerate(leaves)}
    for count in range(8):
        if count == 4:  # the first branch becomes two, which share all of its KV
            ended, path = leaves[0], paths.pop(leaves[0])
            tree, twins = fork(tree, ended, 2)
            first, second = np.argsort(-np.asarray(logits[0]))[:2].tolist()
            paths |= {twins[0]: [*path[:-1], first], twins[1]: [*path[:-1], second]}
            leaves = [*twins, *leaves[1:]]
        node, token = rows_for(leaves, [paths[leaf][-1] for leaf in leaves])
        tree, pool, logits = step(weights, tree, pool, node, token)
        assert tree.overflow == 0, "the tree needs more nodes or pages"
        for row, leaf in enumerate(leaves):
            paths[leaf].append(int(jnp.argmax(logits[row])))

    for row, leaf in enumerate(leaves):
        *tokens, _ = paths[leaf]
        expected = sequence_logits(weights, tokens)
        error = jnp.linalg.norm(logits[row] - expected) / jnp.linalg.norm(expected)
        print(f"branch {row}: {tokens[len(prompt) :]}, relative error {error:.1e}")
        if not error < MAX_ERROR:
            raise SystemExit(f"expected an error below {MAX_ERROR}, got {error:.1e}")
    stored = int(jnp.sum(tree.slot_node < NODES))
    apart = sum(len(paths[leaf]) - 1 for leaf in leaves)
    print(f"KV of {stored} tokens stored once, {apart} as separate sequences")


if __name__ == "__main__":
    main()
