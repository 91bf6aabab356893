"""How trees grow: the protocol of planners, and those that come with it."""

from .check_plan import check_plan
from .check_planner import check_planner
from .checked_strategy import checked
from .parallel import BestOfN, ContinueAll, SelfConsistency
from .protocol import (
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
from .traits import ends_branches, footprint_of, merges_chains, shares_pages

__all__ = [
    "LENGTH",
    "NO_CHILD",
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
    "ends_branches",
    "finish_code",
    "footprint_of",
    "merges_chains",
    "shares_pages",
]
