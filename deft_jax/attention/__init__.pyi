"""The op, and its parts for those who drive the kernels from a loop of their own.

`tree_attention` does all of it. `plan_attention` does what layers share, once per step
and kind of layer. `make_spec`, `prepare` and `attend` are the three steps on Hopper:
sizes once, work lists once per step, kernels once per layer.
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
from .plan import AttentionPlan, plan_attention
from .schedule import Schedule
from .spec import AttentionSpec, Heads, Logits
from .work_lists import WorkList

__all__ = [
    "IMPLEMENTATIONS",
    "AttentionPlan",
    "AttentionSpec",
    "Backend",
    "Grouping",
    "Heads",
    "Logits",
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
    "plan_attention",
    "prepare",
    "tree_attention",
]
