"""What the decode step works on: rows, requests, chunks of prompts, and the log."""

import dataclasses
from typing import Any

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
    """Everything that a step changes.

    Attributes:
        tree: the forest.
        pool: KV of each layer.
        rows: the growing branches.
        hidden: [B, E], final hidden state of each row's last token.
        roots: [R] int32, root of each request slot, N for free slots; a root of the
            forest, or a child of a node that others own or that rests.
        not_finite: [R] bool, true for requests of which a prompt token's hidden state
            or a row's logits were NaN or infinite; the step that finds it ends them.
        branch_keys: sampling keys of the nodes.
        keep: [N] bool, nodes that the last plan keeps though nothing is below them.
        resting: [N] bool, nodes that outlive requests: they stay when one ends that
            owns them or is below, until the flag is cleared and they are dropped.
        planner: the planner's own state.
        log: [S, fields, B] int32, the steps since the host last read it (`StepLog`).
        step: [] int32, steps in the log.
    """

    tree: Tree
    pool: tuple[LayerKV, ...]
    rows: Rows
    hidden: jax.Array
    roots: jax.Array
    not_finite: jax.Array
    branch_keys: BranchKeys
    keep: jax.Array
    resting: jax.Array
    planner: Any
    log: jax.Array
    step: jax.Array

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
            not_finite=jnp.zeros(capacity.requests, bool),
            branch_keys=BranchKeys.create(capacity.nodes),
            keep=jnp.zeros(capacity.nodes, bool),
            resting=jnp.zeros(capacity.nodes, bool),
            planner=(),
            log=StepLog.create(LOG_STEPS, capacity.rows),
            step=jnp.int32(0),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """Prompt tokens to feed in one step, of one or several requests.

    Attributes:
        token: [C] int32, token ids.
        request: [C] int32, request slot of each token, R for idle entries.
        starts: [R] bool, true for requests whose first token is in this chunk.
        last: [B] int32, for rows to start: index in the chunk of their prompt's last
            token; -1 leaves a row as it is.
        number: [B] int32, number within its request of each row to start.
    """

    token: Any
    request: Any
    starts: Any
    last: Any
    number: Any
