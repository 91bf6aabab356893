"""What the decode step works on: rows, requests, chunks of prompts, and the log."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deft_jax.capacity import Capacity
from deft_jax.kv.pool import LayerKV
from deft_jax.runtime.branch_keys import BranchKeys
from deft_jax.tree.state import Tree

LOG_STEPS = 64
"""Most decode steps between two looks of the host: the log has room for them."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The growing branches, one row each.

    Attributes:
        node: [B] int32, node of the row's last fed token, N for idle rows.
        request: [B] int32, request slot, R for idle rows.
        number: [B] int32, number of the row within its request.
        generated: [B] int32, tokens generated on the row's path.
    """

    node: jax.Array
    request: jax.Array
    number: jax.Array
    generated: jax.Array

    @classmethod
    def create(cls, capacity: Capacity) -> "Rows":
        """Return rows that are all idle."""
        return cls(
            node=jnp.full(capacity.rows, capacity.nodes, jnp.int32),
            request=jnp.full(capacity.rows, capacity.requests, jnp.int32),
            number=jnp.zeros(capacity.rows, jnp.int32),
            generated=jnp.zeros(capacity.rows, jnp.int32),
        )


@dataclasses.dataclass(frozen=True)
class StepLog:
    """What happened in each step, for the host to replay; [S, B] each.

    On the device the log is one array, since every array costs a kernel to write to.
    A step is packed field by field; with two rows and the first fields

        accept -1 4, draft_logprob 0.0 -0.5, source 3 4  ->  [-1 4] [bits bits] [3 4]

    Attributes:
        accept: int32, tips of the draft paths that the plan kept, else NO_NODE.
        draft_logprob: float32, log-probability of the draft that each row held.
        source: int32, node that each row continued, N + j for the node of row j of the
            same step, NO_NODE for an idle row.
        left_out: int32, source of a row that asked for what cannot be, else NO_NODE.
        branch: bool, true where the row's token began a new child.
        draft: bool, true where that child is a draft.
        node: int32, node that each row's token went to, N if it was not fed.
        token: int32, the row's token.
        logprob: float32, natural log-probability of the token.
        finish: int32, finish code of the row.
        request: int32, request slot of the row.
        tree_tokens: int32, cached tokens that the step read, the same in every row.
        path_tokens: int32, cached tokens on the path of each row that was fed, which
            attention over one sequence at a time would have read; 0 for the others.
    """

    accept: Any
    draft_logprob: Any
    source: Any
    left_out: Any
    branch: Any
    draft: Any
    node: Any
    token: Any
    logprob: Any
    finish: Any
    request: Any
    tree_tokens: Any
    path_tokens: Any

    @classmethod
    def create(cls, steps: int, num_rows: int) -> jax.Array:
        """Return an empty log, packed: [S, fields, B] int32."""
        return jnp.zeros((steps, len(dataclasses.fields(cls)), num_rows), jnp.int32)

    def pack(self) -> jax.Array:
        """Return the fields of one step as [fields, B] int32, floats by their bits."""
        return jnp.stack([_bits(x) for x in vars(self).values()])

    @classmethod
    def unpack(cls, packed: np.ndarray) -> "StepLog":
        """Return the log on the host from a packed one, [S, fields, B] int32."""
        names = (field.name for field in dataclasses.fields(cls))
        fields = dict(zip(names, np.moveaxis(packed, 1, 0), strict=True))
        for name in ("draft_logprob", "logprob"):
            fields[name] = np.ascontiguousarray(fields[name]).view(np.float32)
        for name in ("branch", "draft"):
            fields[name] = fields[name].astype(bool)
        return cls(**fields)


def _bits(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return x.astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Everything that outlives a program.

    Attributes:
        tree: the forest. While its overflow is set nothing runs: whatever was started
            behind a plan or a chunk that did not fit changes nothing, until the host
            has made room with an `Edit`.
        pool: KV of each layer.
        rows: the growing branches.
        hidden: [B, E], final hidden state of each row's last token.
        roots: [R] int32, root of each request slot, N for free slots; a root of the
            forest, or a child of a node that rests.
        feeding: [R] int32, node that shared prompt tokens of each slot are fed to, N
            for none.
        not_finite: [R] bool, true for requests of which a prompt token's hidden state
            or a row's logits were NaN or infinite; the step that finds it ends them.
        branch_keys: sampling keys of the nodes.
        keep: [N] bool, nodes that the last plan keeps though nothing is below them.
        resting: [N] bool, live nodes that stay until the host drops them, whatever
            requests end: prompts that others may share, and paths of ended requests.
        planner: all that is the planner's (`node_carry.PlannerState`); () between
            bursts.
    """

    tree: Tree
    pool: tuple[LayerKV, ...]
    rows: Rows
    hidden: jax.Array
    roots: jax.Array
    feeding: jax.Array
    not_finite: jax.Array
    branch_keys: BranchKeys
    keep: jax.Array
    resting: jax.Array
    planner: Any

    @classmethod
    def create(
        cls,
        capacity: Capacity,
        pool: tuple[LayerKV, ...],
        hidden_size: int,
        dtype: jnp.dtype,
    ) -> "DecodeState":
        """Return a state without a request.

        Args:
            capacity: sizes of the arrays.
            pool: empty storage for the KV of each layer.
            hidden_size: `E`.
            dtype: dtype of the hidden states.
        """
        return cls(
            tree=Tree.create(capacity.nodes, capacity.pages, capacity.page_size),
            pool=pool,
            rows=Rows.create(capacity),
            hidden=jnp.zeros((capacity.rows, hidden_size), dtype),
            roots=jnp.full(capacity.requests, capacity.nodes, jnp.int32),
            feeding=jnp.full(capacity.requests, capacity.nodes, jnp.int32),
            not_finite=jnp.zeros(capacity.requests, bool),
            branch_keys=BranchKeys.create(capacity.nodes),
            keep=jnp.zeros(capacity.nodes, bool),
            resting=jnp.zeros(capacity.nodes, bool),
            planner=(),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turn:
    """What the host says of one burst of decode steps.

    Attributes:
        requests: [R] bool, true for the slots that decode; the others are not seen by
            the planner and stay as they are.
        parked: [R] bool, true for slots of the same planner that have decoded, and are
            to go on in a later burst.
        rests: [R] bool, true for slots whose finished branches, and whose nodes at
            their end, stay as resting nodes instead of being freed.
        max_steps: [] int32, most steps, at most LOG_STEPS.
        scores: [N] float32, what the host says of nodes, NaN where it says nothing;
            None for a planner that never waits.
    """

    requests: Any
    parked: Any
    rests: Any
    max_steps: Any
    scores: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Report:
    """What a program tells the host; its arrays outlive the state that it came from.

    Attributes:
        numbers: [5 + 6 R + W] int32, the fields of `Numbers`, packed.
        log: [S, fields, W] int32, the steps of a burst (`StepLog`); None of others.
        tops: their most likely tokens (`TopLog`); () where no request wants them.
        scores: what a chunk was asked to tell of its tokens; None of others.
    """

    numbers: jax.Array
    log: jax.Array | None = None
    tops: Any = ()
    scores: Any = None


class Numbers(NamedTuple):
    """What every program reports, on the host.

    Attributes:
        steps: decode steps that were run.
        overflow: bits of `Tree.overflow`; not 0 where something did not fit.
        free_pages: pages that hold no token.
        free_nodes: nodes that are not live.
        live_rows: rows that hold a token, of all requests.
        roots_before: [R], root of each slot before the program's first step.
        roots: [R], root of each slot, N for free slots.
        feeding: [R], node that each slot's shared prompt is fed to, N for none.
        not_finite: [R], 1 for slots whose numbers were NaN or infinite.
        waiting: [R], 1 for slots that wait for scores of the host.
        split_off: [R], new nodes of an edit's splits, N for none.
        row_node: [W], node of each row that the program ran, N for idle rows.
    """

    steps: int
    overflow: int
    free_pages: int
    free_nodes: int
    live_rows: int
    roots_before: np.ndarray
    roots: np.ndarray
    feeding: np.ndarray
    not_finite: np.ndarray
    waiting: np.ndarray
    split_off: np.ndarray
    row_node: np.ndarray

    @classmethod
    def unpack(cls, packed: np.ndarray, num_requests: int) -> "Numbers":
        """Return the fields from `Report.numbers` of `R` request slots."""
        names, scalars = cls._fields, packed[:5].tolist()
        numbers = dict(zip(names[:5], scalars, strict=True))
        rest = packed[5:].astype(np.int64)
        for index, name in enumerate(names[5:-1]):
            numbers[name] = rest[num_requests * index : num_requests * (index + 1)]
        numbers[names[-1]] = rest[num_requests * len(names[5:-1]) :]
        return cls(**numbers)


def pack_numbers(
    state: DecodeState,
    *,
    steps: jax.Array | int = 0,
    roots_before: jax.Array | None = None,
    waiting: jax.Array | None = None,
    split_off: jax.Array | None = None,
    row_node: jax.Array | None = None,
) -> jax.Array:
    """Return what a program reports of the state it leaves, as `Numbers` says."""
    tree, rows = state.tree, state.rows
    free = jnp.full_like(state.roots, tree.num_nodes)
    scalars = (
        steps,
        tree.overflow,
        tree.num_free_pages,
        tree.num_free_nodes,
        jnp.sum(rows.node < tree.num_nodes),
    )
    return jnp.concatenate(
        [
            jnp.stack([jnp.asarray(x, jnp.int32) for x in scalars]),
            state.roots if roots_before is None else roots_before,
            state.roots,
            state.feeding,
            state.not_finite.astype(jnp.int32),
            jnp.zeros_like(free) if waiting is None else waiting.astype(jnp.int32),
            free if split_off is None else split_off,
            rows.node if row_node is None else row_node,
        ]
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """Tokens to feed in one step, of one or several requests.

    A *code* names the node that a token goes to: below N a node of the forest, N + r
    the node that slot r's shared prompt is fed to, N + R + r the root of slot r. Both
    may be made by this chunk, so that the host need not know their numbers.

    Attributes:
        token: [C] int32, token ids.
        node: [C] int32 code, node of each token, -1 for idle entries.
        request: [C] int32, request slot of each token, R for idle entries.
        starts: [R] bool, true for slots whose request begins with this chunk.
        prefix: [R] int32 code, parent of a new node for shared prompt tokens of each
            slot: NO_NODE for none above it, NOTHING to make no node.
        root: [R] int32 code, parent of a new root of each slot, likewise.
        key: [R] uint32, sampling key of each new root.
        last: [B] int32, for rows to start: index in the chunk of their prompt's last
            token; -1 leaves a row as it is.
        number: [B] int32, number within its request of each row to start.
    """

    token: Any
    node: Any
    request: Any
    starts: Any
    prefix: Any
    root: Any
    key: Any
    last: Any
    number: Any


NOTHING = -2
"""`Chunk.prefix` and `Chunk.root` of slots for which no node is made."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Question:
    """What a chunk is to tell of its tokens.

    Attributes:
        target: [C] int32, token whose log-probability behind each token is wanted.
        top: [R] int32, index in the chunk of a token whose most likely successors are
            wanted, for each slot; -1 for none.
    """

    target: Any
    top: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """The answer to a `Question`.

    Attributes:
        logprob: [C] float32, natural log-probability of each target.
        top_token: [R, k] int32, most likely tokens, the likeliest first.
        top_logprob: [R, k] float32, their log-probabilities.
    """

    logprob: Any
    top_token: Any
    top_logprob: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Edit:
    """What the host changes in the forest between bursts, in this order.

    Attributes:
        dropped: [N] bool, nodes to drop with all below them.
        rest: [N] bool, nodes that rest from now on.
        released: [N] bool, nodes that lose their tokens' slots and stay; their tokens
            are fed again later, parents before children.
        split: [R] int32, nodes to split in two, -1 for none, each at most once.
        at: [R] int32, tokens that stay in the upper part.
        row: [B] int32, row that each row takes over: a permutation.
    """

    dropped: Any
    rest: Any
    released: Any
    split: Any
    at: Any
    row: Any
