"""What the layers of one kind share in a step: their work lists, made once.

A step groups its queries once. From the grouping follows a schedule for each kind of
layer (`AttentionSpec`): which KV heads there are to divide among workers, and what a
window hides. All layers of a kind attend with the same plan.
"""

import dataclasses

import jax

from deft_jax.attention.backend import Backend, Shaped, choose_backend
from deft_jax.attention.device import (
    Device,
    device_of,
    has_bulk_copies,
    num_multiprocessors,
)
from deft_jax.attention.grouping import Grouping
from deft_jax.attention.hopper import make_spec
from deft_jax.attention.kernel_inputs import Inputs, prepare
from deft_jax.attention.portable import make_mma_spec, prepare_portably
from deft_jax.attention.spec import AttentionSpec
from deft_jax.pallas_kernels.kernel_spec import KernelSpec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KernelPlan:
    """What the GPU kernels of a kind of layer need besides queries, keys and values.

    Attributes:
        inputs: masks, positions and work lists.
        sizes: static, what the kernels are compiled for.
    """

    inputs: Inputs
    sizes: KernelSpec = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """What `tree_attention` needs to know of a step, for all layers of one kind.

    Attributes:
        grouping: what each query of the step sees.
        kernels: work lists of the kernels; None where no kernel runs.
        spec: static, what the attention computes, on what heads and dtypes.
        backend: static, what runs.
    """

    grouping: Grouping
    kernels: KernelPlan | None
    spec: AttentionSpec = dataclasses.field(metadata={"static": True})
    backend: Backend = dataclasses.field(metadata={"static": True})


def plan_attention(
    grouping: Grouping, spec: AttentionSpec, *, implementation: str | None = None
) -> AttentionPlan:
    """Plan the attention of a step for all layers of one kind.

    Call it once per step and kind, and `tree_attention(q, k_pages, v_pages, plan)` once
    per layer: the schedule of the kernels is then computed once, whatever the compiler
    makes of equal computations.

    Args:
        grouping: what each query sees, after the step's tokens were appended.
        spec: heads, dtypes and options of the layers.
        implementation: what `tree_attention` would be asked for; None for the best on
            the device where the grouping lies.

    Returns:
        The plan, for arrays of the grouping's and the spec's shapes.

    Raises:
        DeftError: no implementation has that name, or it cannot take such arrays.
    """
    return make_plan(grouping, spec, implementation, device_of(grouping.order))


def make_plan(
    grouping: Grouping,
    spec: AttentionSpec,
    implementation: str | None,
    device: Device,
) -> AttentionPlan:
    """Do what `plan_attention` does, for a device that is known."""
    q = spec.queries(grouping.num_queries)
    k_pages = spec.pages(*grouping.slot_first.shape)
    backend = choose_backend(implementation, q, k_pages, device)
    sizes = _kernel_sizes(backend, spec, q, k_pages, device)
    if sizes is None:
        return AttentionPlan(grouping, None, spec, backend)
    with jax.named_scope("grouping"):
        if backend is Backend.HOPPER:
            inputs = prepare(grouping, sizes)
        else:
            inputs = prepare_portably(grouping, sizes)
    return AttentionPlan(grouping, KernelPlan(inputs, sizes), spec, backend)


def _kernel_sizes(
    backend: Backend, spec: AttentionSpec, q: Shaped, k_pages: Shaped, device: Device
) -> KernelSpec | None:
    """Return what a backend's kernels are compiled for; None if it has none."""
    workers = num_multiprocessors(device)
    if backend is Backend.HOPPER:
        return make_spec(q, k_pages, spec.logits, num_workers=workers, device=device)
    if backend is Backend.PORTABLE:
        bulk = has_bulk_copies(device)
        return make_mma_spec(q, k_pages, spec.logits, bulk=bulk, num_workers=workers)
    return None
