"""What the decode step works on: rows, requests, chunks of prompts, and the log."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deft_jax.kv.pool import LayerKV
from deft_jax.runtime.branch_keys import BranchKeys
from deft_jax.tree.state import Tree


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


@dataclasses.dataclass(frozen=True)
class StepLog:
    """What happened in each step, for the host to replay; [S, B] each, see `Plan`.

    On the device it is one array, since every array costs a kernel to write to.

    Attributes:
        node: int32, node each row's token went to, N if it was not fed.
    """

    accept: Any
    draft_logprob: Any
    source: Any
    branch: Any
    draft: Any
    node: Any
    token: Any
    logprob: Any
    finish: Any
    request: Any

    @classmethod
    def create(cls, steps: int, num_rows: int) -> jax.Array:
        """[S, F, B] int32: an empty log, packed."""
        return jnp.zeros((steps, len(dataclasses.fields(cls)), num_rows), jnp.int32)

    def pack(self) -> jax.Array:
        """[F, B] int32: the fields of one step, the bits of floats."""
        return jnp.stack([_bits(x) for x in vars(self).values()])

    @classmethod
    def unpack(cls, packed: np.ndarray) -> "StepLog":
        """The log from a packed one on the host, [S, F, B] int32."""
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
        roots: [R] int32, root of each request slot, N for free slots.
        branch_keys: sampling keys of the nodes.
        keep: [N] bool, nodes that the last plan keeps though nothing is below them.
        planner: the planner's own state.
        log: [S, F, B] int32, of the steps since the host last read it (`StepLog`).
        step: [] int32, steps in the log.
        kv_tokens: [2] float32, cached tokens read by those steps, and what attention
            over one sequence at a time would have read.
    """

    tree: Tree
    pool: tuple[LayerKV, ...]
    rows: Rows
    hidden: jax.Array
    roots: jax.Array
    branch_keys: BranchKeys
    keep: jax.Array
    planner: Any
    log: jax.Array
    step: jax.Array
    kv_tokens: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """Prompt tokens to feed in one step, of one or several requests.

    Attributes:
        token: [C] int32.
        request: [C] int32, request slot of each token, R for idle rows.
        starts: [R] bool, requests whose first token is in this chunk.
        last: [B] int32, for rows to start: index in the chunk of their prompt's last
            token; -1 leaves a row as it is.
        number: [B] int32, number within its request of each row to start.
    """

    token: jax.Array
    request: jax.Array
    starts: jax.Array
    last: jax.Array
    number: jax.Array
