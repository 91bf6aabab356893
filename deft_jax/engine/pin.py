"""What keeps the KV of a path that no request uses."""

import dataclasses

from deft_jax.engine.prefix_cache import CachedNode


@dataclasses.dataclass(eq=False)
class Pin:
    """Keeps the KV of the paths that a request has left.

    Attributes:
        ends: cached nodes at the ends of the paths; empty once it is given back.
    """

    ends: list[CachedNode]
