"""What the host wants changed in the forest when no burst is under way."""

import dataclasses

import numpy as np

from deft_jax.capacity import Capacity
from deft_jax.engine.runner import empty_edit
from deft_jax.runtime.state import Edit


@dataclasses.dataclass
class PendingEdit:
    """Collects changes until the next edit.

    Attributes:
        dropped: nodes to drop with all below them.
        rest: nodes that rest from now on; their rows idle.
        released: nodes that lose their tokens' slots and stay.
        splits: tokens that stay in the upper part, by the node to be split.
        rows: row that each row takes over; None to leave them.
        clears: true to let the device run again after something did not fit.
    """

    dropped: set[int] = dataclasses.field(default_factory=set)
    rest: set[int] = dataclasses.field(default_factory=set)
    released: set[int] = dataclasses.field(default_factory=set)
    splits: dict[int, int] = dataclasses.field(default_factory=dict)
    rows: list[int] | None = None
    clears: bool = False

    def __bool__(self) -> bool:
        """Return whether there is something to change."""
        masks = self.dropped or self.rest or self.released or self.splits
        return bool(masks) or self.rows is not None or self.clears

    def arrays(self, capacity: Capacity) -> Edit:
        """Return what the device is told."""
        changes = empty_edit(capacity)
        for name in ("dropped", "rest", "released"):
            getattr(changes, name)[list(getattr(self, name))] = True
        for index, (node, at) in enumerate(self.splits.items()):
            changes.split[index], changes.at[index] = node, at
        if self.rows is not None:
            changes.row[:] = np.array(self.rows, np.int32)
        return changes
