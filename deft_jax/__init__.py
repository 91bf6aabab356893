"""Tree decoding for large language models in JAX."""

from deft_jax.append import Slots, append
from deft_jax.capacity import Capacity
from deft_jax.engine import Engine
from deft_jax.errors import CapacityError, DeftError
from deft_jax.grouping import Grouping, WorkList, group
from deft_jax.kv_pool import LayerKV, create_pool, write
from deft_jax.pruning import accept, prune
from deft_jax.result import GenerationTree, Status, TokenEvent, TreeNode
from deft_jax.sampling import Sampling
from deft_jax.strategies.parallel import BestOfN, SelfConsistency
from deft_jax.strategy import Plan, Strategy, View
from deft_jax.tree import NO_NODE, Tree, branch
from deft_jax.tree_attention import tree_attention

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
    "group",
    "prune",
    "tree_attention",
    "write",
]
