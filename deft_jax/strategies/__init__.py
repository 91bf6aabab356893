"""How trees grow: the protocol of planners, and those that come with it."""

from deft_jax.sampling.vocab_search import top_k
from deft_jax.strategies.check_plan import check_plan, checked
from deft_jax.strategies.check_planner import check_planner
from deft_jax.strategies.parallel import BestOfN, ContinueAll, SelfConsistency
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
from deft_jax.tree.state import NO_NODE

__all__ = [
    "LENGTH",
    "NO_CHILD",
    "NO_NODE",
    "RUNNING",
    "STOP",
    "BestOfN",
    "ContinueAll",
    "Plan",
    "Planner",
    "SelfConsistency",
    "Strategy",
    "View",
    "check_plan",
    "check_planner",
    "checked",
    "finish_code",
    "top_k",
]
