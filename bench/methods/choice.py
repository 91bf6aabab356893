"""The methods that the DeFT paper compares, as configurations of one engine.

All share the model, the decode loop, sampling and the tree; they differ in how KV is
stored and attended. With "mosaic_gpu", all but `medusa` run the same kernels with other
work lists.
"""

import dataclasses

import jax

from deft_jax.accounting.methods import METHODS
from deft_jax.attention.backend import Backend
from deft_jax.attention.grouping import group
from deft_jax.attention.kernel_inputs import prepare
from deft_jax.attention.plan import AttentionPlan, KernelPlan
from deft_jax.errors import DeftError
from deft_jax.runtime.attention_method import (
    AttentionMethod,
    Pool,
    Specs,
    StepPlan,
    TreeMethod,
    plan_kinds,
)
from deft_jax.tree.appending import Slots
from deft_jax.tree.state import Tree

from .dense import DenseMethod
from .duplicated import DuplicatedMethod
from .node import NodeMethod
from .sequence_spec import sequence_spec

CHUNK_TOKENS = 512
"""Tokens of a chunk of `deft_node_chunk`."""


def make_method(
    name: str,
    implementation: str | None = None,
    *,
    path_tokens: int = 0,
    draft_depth: int = 1,
) -> AttentionMethod:
    """Make a method of METHODS.

    Args:
        name: name of the method.
        implementation: "mosaic_gpu" or "xla", None for the best.
        path_tokens: longest path; `flash_decoding` must be told before it runs.
        draft_depth: how deep the drafts of the planner are that decodes with it.

    Raises:
        DeftError: there is no such method, or it cannot decode drafts.
    """
    methods = {
        "flash_decoding": DuplicatedMethod(implementation, path_tokens),
        "radix": SequenceMethod(implementation),
        "medusa": DenseMethod(),
        "deft_node": NodeMethod(implementation),
        "deft_node_chunk": NodeMethod(implementation, chunk_tokens=CHUNK_TOKENS),
        "deft_flatten": TreeMethod(implementation),
    }
    if name not in methods:
        raise DeftError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    if name == "flash_decoding" and draft_depth > 1:
        raise DeftError(
            "flash_decoding reads 1 token per row and step, not drafts "
            f"{draft_depth - 1} deep"
        )
    return methods[name]


@dataclasses.dataclass(frozen=True)
class SequenceMethod(TreeMethod):
    """`radix`: KV in shared pages, read by every query that sees it.

    The kernel's tiles hold one query each, so that the work lists are those of one
    sequence at a time, evenly split.
    """

    def plan(
        self,
        tree: Tree,
        slots: Slots,
        pool: Pool,
        previous_node: jax.Array | None,
        specs: Specs,
    ) -> tuple[StepPlan, Pool]:
        """List the pages of each sequence; prompts are read as by the tree's."""
        if previous_node is None:
            return super().plan(tree, slots, pool, previous_node, specs)
        grouping = group(tree, slots, tile_queries=1)
        plans = plan_kinds(grouping, specs, self.implementation, pool)
        attention = {kind: _one_by_one(plan) for kind, plan in plans.items()}
        return StepPlan.create(grouping, slots, attention), pool


def _one_by_one(plan: AttentionPlan) -> AttentionPlan:
    """Return the plan whose kernel tiles hold one query each."""
    if plan.backend is not Backend.HOPPER:
        return plan
    grouping, spec = plan.grouping, plan.spec
    q = spec.queries(grouping.num_queries)
    sizes = sequence_spec(q, spec.pages(*grouping.slot_first.shape), spec.logits)
    with jax.named_scope("grouping"):
        inputs = prepare(grouping, sizes)
    return dataclasses.replace(plan, kernels=KernelPlan(inputs, sizes))
