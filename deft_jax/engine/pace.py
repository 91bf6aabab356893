"""How many decode steps run between two looks of the host."""

from collections.abc import Hashable

from deft_jax.runtime.state import LOG_STEPS

BURST_S = 0.025
"""Seconds that a burst may take while somebody waits for what it does."""

FIRST_STEPS = 4
"""Steps of a burst before the time of a step is known."""

SHARE_OF_NEW = 0.5
"""Weight of the latest burst in the time that a step is taken to need."""


class Pace:
    """Knows how long a decode step takes, by the program that runs it."""

    def __init__(self) -> None:
        self._step_s: dict[Hashable, float] = {}

    def note(self, step: Hashable, steps: int, seconds: float) -> None:
        """Note how long a burst took.

        Args:
            step: what names the decode step.
            steps: how many were run.
            seconds: the time from its start, or the end of the one before, to its end.
        """
        if steps:
            new = seconds / steps
            old = self._step_s.get(step, new)
            self._step_s[step] = old + SHARE_OF_NEW * (new - old)

    def steps_within(self, step: Hashable, seconds: float = BURST_S) -> int:
        """Return how many steps fit a time, from 1 to LOG_STEPS."""
        step_s = self._step_s.get(step)
        if step_s is None:
            return FIRST_STEPS
        return max(1, min(LOG_STEPS, int(seconds / max(step_s, 1e-9))))
