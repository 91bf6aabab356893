"""Tree decoding for large language models in JAX."""

from .attention.api import tree_attention
from .attention.grouping import Grouping, WorkList, group
from .capacity import Capacity
from .engine.compilation_cache import enable_compilation_cache
from .engine.engine import Engine
from .errors import CapacityError, DeftError
from .kv.pool import LayerKV, create_pool, write
from .results.counters import Status
from .results.generation_tree import GenerationTree
from .results.tree_node import TokenEvent, TreeNode
from .sampling.params import Sampling
from .strategies.parallel import BestOfN, SelfConsistency
from .strategies.protocol import Plan, Strategy, View
from .tree.appending import Slots, append
from .tree.branching import branch
from .tree.pruning import accept, prune
from .tree.state import NO_NODE, Tree

__all__ = [
    "NO_NODE",
    "BestOfN",
    "Capacity",
    "CapacityError",
    "DeftError",
    "Engine",
    "GenerationTree",
    "Grouping",
    "LayerKV",
    "Plan",
    "Sampling",
    "SelfConsistency",
    "Slots",
    "Status",
    "Strategy",
    "TokenEvent",
    "Tree",
    "TreeNode",
    "View",
    "WorkList",
    "accept",
    "append",
    "branch",
    "create_pool",
    "enable_compilation_cache",
    "group",
    "prune",
    "tree_attention",
    "write",
]
