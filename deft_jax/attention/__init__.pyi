"""The op, and its parts for those who drive the kernels from a loop of their own.

`tree_attention` does all of it. `make_spec`, `prepare` and `attend` are its three steps
on Hopper: sizes once, work lists once per step, kernels once per layer.
"""

from .api import tree_attention
from .backend import (
    IMPLEMENTATIONS,
    Backend,
    choose_backend,
    device_backend,
)
from .device import (
    compute_capability,
    is_hopper,
    num_multiprocessors,
)
from .grouping import Grouping, group, group_arrays
from .hopper import attend, make_spec
from .kernel_inputs import prepare
from .schedule import Schedule
from .spec import AttentionSpec
from .work_lists import WorkList

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
