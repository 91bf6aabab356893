"""What the decode step works on: rows, requests, chunks of prompts, and the log."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from deft_jax.kv_pool import LayerKV
from deft_jax.sampling import SamplingRows
from deft_jax.tree import Tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The growing branches, one row each.

    Attributes:
        node: [B] int32, node of the row's last fed token, N for idle rows.
        request: [B] int32, request slot, R for idle rows.
        stream: [B] uint32, random stream.
        generated: [B] int32, tokens generated on the row's path.
    """

    node: jax.Array
    request: jax.Array
    stream: jax.Array
    generated: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RequestTable:
    """What the host sets per request slot.

    Attributes:
        sampling: rows of `R` requests.
        max_new_tokens: [R] int32, tokens a branch may have.
        ignore_eos: [R] bool, true to go on after an end-of-text token.
        eos: [any] int32, end-of-text token ids.
    """

    sampling: SamplingRows
    max_new_tokens: jax.Array
    ignore_eos: jax.Array
    eos: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepLog:
    """What happened in each step, for the host to replay; [S, B] each, see `Plan`.

    Attributes:
        node: int32, node each row's token went to, N if it was not fed.
    """

    accept: jax.Array
    draft_logprob: jax.Array
    source: jax.Array
    branch: jax.Array
    draft: jax.Array
    node: jax.Array
    token: jax.Array
    logprob: jax.Array
    finish: jax.Array
    request: jax.Array

    @classmethod
    def create(cls, steps: int, num_rows: int) -> "StepLog":
        """An empty log; every array its own, since the state is donated."""
        dtypes = dict.fromkeys((x.name for x in dataclasses.fields(cls)), jnp.int32)
        dtypes |= dict.fromkeys(("branch", "draft"), jnp.bool_)
        dtypes |= dict.fromkeys(("logprob", "draft_logprob"), jnp.float32)
        return cls(
            **{name: jnp.zeros((steps, num_rows), d) for name, d in dtypes.items()}
        )


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
        keep: [N] bool, nodes that the last plan keeps though nothing is below them.
        planner: the planner's own state.
        log: of the steps since the host last read it.
        step: [] int32, steps in the log.
        kv_tokens: [2] float32, cached tokens read by those steps, and what attention
            over one sequence at a time would have read.
    """

    tree: Tree
    pool: tuple[LayerKV, ...]
    rows: Rows
    hidden: jax.Array
    roots: jax.Array
    keep: jax.Array
    planner: Any
    log: StepLog
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
        stream: [B] uint32, random stream of the rows to start.
    """

    token: jax.Array
    request: jax.Array
    starts: jax.Array
    last: jax.Array
    stream: jax.Array
