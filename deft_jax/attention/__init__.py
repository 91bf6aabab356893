"""The op, and its parts for those who drive the kernels from a loop of their own.

`tree_attention` does all of it. `make_spec`, `prepare` and `attend` are its three steps
on Hopper: sizes once, work lists once per step, kernels once per layer.
"""

from deft_jax.attention.api import tree_attention
from deft_jax.attention.backend import (
    IMPLEMENTATIONS,
    Backend,
    choose_backend,
    device_backend,
)
from deft_jax.attention.device import (
    compute_capability,
    is_hopper,
    num_multiprocessors,
)
from deft_jax.attention.grouping import Grouping, WorkList, group, group_arrays
from deft_jax.attention.hopper import attend, make_spec
from deft_jax.attention.schedule import Schedule, prepare
from deft_jax.attention.spec import AttentionSpec

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionSpec",
    "Backend",
    "Grouping",
    "Schedule",
    "WorkList",
    "attend",
    "choose_backend",
    "compute_capability",
    "device_backend",
    "group",
    "group_arrays",
    "is_hopper",
    "make_spec",
    "num_multiprocessors",
    "prepare",
    "tree_attention",
]
