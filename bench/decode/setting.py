"""What the runs of a report share."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

from deft_jax.capacity import DEFAULT_PAGE_SIZE

from ..gpu.timing import Record
from .step_ceilings import Rates


class Programs:
    """Compiled steps of the last capacity, for all engines of one model.

    A report goes from tree to tree with all methods; trees of one capacity come in a
    row, and their engines need the same programs.
    """

    def __init__(self) -> None:
        """Start without a program."""
        self._capacity: Hashable = None
        self._compiled: dict[Hashable, Any] = {}

    def get(self, capacity: Hashable, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return a program, made if it is not there.

        Args:
            capacity: the engine's capacity; programs of another one are dropped.
            key: what names the method and the step.
            make: lowers and compiles.
        """
        if capacity != self._capacity:
            self._capacity, self._compiled = capacity, {}
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the runs of a report share.

    Attributes:
        model: the network.
        tokenizer: the model's tokenizer.
        rates: what the device reads and multiplies per second.
        implementation: name of what runs the attention; None for the device's best.
        page_size: `P`.
        record: profiles kernels; None where the device has no profiler.
        seed: seed of the random prompts.
        programs: compiled so far.
    """

    model: Any
    tokenizer: Any
    rates: Rates
    implementation: str | None = None
    page_size: int = DEFAULT_PAGE_SIZE
    record: Record | None = None
    seed: int = 0
    programs: Programs = dataclasses.field(default_factory=Programs)
