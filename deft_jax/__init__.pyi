"""Tree decoding for large language models in JAX."""

from .attention.api import tree_attention
from .attention.grouping import Grouping, group
from .attention.plan import AttentionPlan, plan_attention
from .attention.spec import AttentionSpec, Heads
from .attention.work_lists import WorkList
from .capacity import Capacity
from .engine.branch import Branch
from .engine.branch_group import BranchGroup
from .engine.compilation_cache import enable_compilation_cache
from .engine.engine import Engine
from .engine.session import Session
from .errors import CapacityError, DeftError
from .kv.pool import LayerKV, create_pool, write
from .results.counters import Status
from .results.generation_tree import GenerationTree
from .results.tree_node import TokenEvent, TreeNode
from .runtime.attention_method import TreeMethod
from .sampling.params import Sampling
from .sampling.vocab_search import top_k
from .strategies.check_plan import check_plan
from .strategies.check_planner import check_planner
from .strategies.checked_strategy import checked
from .strategies.parallel import BestOfN, SelfConsistency
from .strategies.protocol import (
    LENGTH,
    NO_CHILD,
    RUNNING,
    STOP,
    Plan,
    Planner,
    Strategy,
    View,
    finish_code,
)
from .tree.appending import Slots, append
from .tree.branching import branch
from .tree.pruning import accept, prune
from .tree.relabel import collapse, split
from .tree.state import NO_NODE, Tree

__all__ = [
    "LENGTH",
    "NO_CHILD",
    "NO_NODE",
    "RUNNING",
    "STOP",
    "AttentionPlan",
    "AttentionSpec",
    "BestOfN",
    "Branch",
    "BranchGroup",
    "Capacity",
    "CapacityError",
    "DeftError",
    "Engine",
    "GenerationTree",
    "Grouping",
    "Heads",
    "LayerKV",
    "Plan",
    "Planner",
    "Sampling",
    "SelfConsistency",
    "Session",
    "Slots",
    "Status",
    "Strategy",
    "TokenEvent",
    "Tree",
    "TreeMethod",
    "TreeNode",
    "View",
    "WorkList",
    "accept",
    "append",
    "branch",
    "check_plan",
    "check_planner",
    "checked",
    "collapse",
    "create_pool",
    "enable_compilation_cache",
    "finish_code",
    "group",
    "plan_attention",
    "prune",
    "split",
    "top_k",
    "tree_attention",
    "write",
]
