"""Tree decoding for large language models in JAX."""

from deft_jax.attention.api import tree_attention
from deft_jax.attention.grouping import Grouping, WorkList, group
from deft_jax.capacity import Capacity
from deft_jax.engine.compilation_cache import enable_compilation_cache
from deft_jax.engine.engine import Engine
from deft_jax.errors import CapacityError, DeftError
from deft_jax.kv.pool import LayerKV, create_pool, write
from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TokenEvent, TreeNode
from deft_jax.sampling.params import Sampling
from deft_jax.sampling.vocab_search import top_k
from deft_jax.strategies.check_plan import check_plan, checked
from deft_jax.strategies.check_planner import check_planner
from deft_jax.strategies.parallel import BestOfN, SelfConsistency
from deft_jax.strategies.protocol import (
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
from deft_jax.tree.appending import Slots, append
from deft_jax.tree.branching import branch
from deft_jax.tree.pruning import accept, prune
from deft_jax.tree.state import NO_NODE, Tree

__all__ = [
    "LENGTH",
    "NO_CHILD",
    "NO_NODE",
    "RUNNING",
    "STOP",
    "BestOfN",
    "Capacity",
    "CapacityError",
    "DeftError",
    "Engine",
    "GenerationTree",
    "Grouping",
    "LayerKV",
    "Plan",
    "Planner",
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
    "check_plan",
    "check_planner",
    "checked",
    "create_pool",
    "enable_compilation_cache",
    "finish_code",
    "group",
    "prune",
    "top_k",
    "tree_attention",
    "write",
]
