"""Bursts of decode steps: started, and looked at when they are done."""

import time
from collections.abc import Hashable
from typing import NamedTuple

import jax
import numpy as np

from deft_jax.engine.call import Call
from deft_jax.engine.evaluation import Evaluations
from deft_jax.engine.live_request import LiveRequest, calls_of
from deft_jax.engine.log_replay import Told
from deft_jax.engine.pace import Pace
from deft_jax.engine.plan_notices import plan_notices
from deft_jax.engine.preparing import preparing
from deft_jax.engine.programs import StopRequested
from deft_jax.engine.progress import count_reads
from deft_jax.engine.row_moves import free_idle_rows
from deft_jax.engine.runner import decode_step_of, no_scores, no_turn
from deft_jax.engine.widths import choose_width, row_widths
from deft_jax.engine.work import Work
from deft_jax.errors import DeftError
from deft_jax.runtime.state import LOG_STEPS, Numbers, Report, StepLog, Turn
from deft_jax.runtime.top_log import TopLog
from deft_jax.sampling.request_table import RequestTable
from deft_jax.strategies.protocol import Planner
from deft_jax.strategies.traits import may_wait, runs_at_any_width

WORTH_S = 2.0
"""Seconds for which a narrower decode step must have been wanted before it is made."""


class Burst(NamedTuple):
    """Decode steps that the device may still be at.

    Attributes:
        report: what they will tell.
        lives: the requests that decode, by slot.
        step: what names the decode step.
        begin: clock when it was started, in seconds.
    """

    report: Report
    lives: dict[int, LiveRequest]
    step: Hashable
    begin: float


class Decoder:
    """Runs decode steps, the requests of one planner at a time."""

    def __init__(self, work: Work):
        self.work = work
        self._pace, self._evaluations = Pace(), Evaluations(work)
        self._wanted_s: dict[Hashable, float] = {}
        self._narrower: Hashable = None
        self._last_planner: Planner | None = None

    def start(self) -> Burst | None:
        """Start one burst, if a request decodes."""
        lives = self._next_group()
        if not lives:
            return None
        planner = lives[0].planner
        table = self.work.request_table()
        width = self._width(lives, table)
        step = decode_step_of(planner, width)
        try:
            self._make(table, planner, width, lives)
        except (StopRequested, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # The planner cannot be traced.
            self._fail(lives, error)
            return None
        rooms = self.work.forest.rooms
        is_in = np.zeros(rooms.requests, bool)
        rests = np.zeros(rooms.requests, bool)
        parked = np.zeros(rooms.requests, bool)
        for live in self.work.forest.lives.values():
            has_state = live.has_decoded and live.planner == planner
            parked[live.slot] = has_state and live not in lives
        for live in lives:
            is_in[live.slot], rests[live.slot] = True, self.work.forest.rests(live)
        begin = time.perf_counter()
        steps = np.int32(self._num_steps(lives, step))
        turn = Turn(is_in, parked, rests, steps, self._scores(lives))
        report = self.work.runner.decode(table, turn, planner, width)
        for live in lives:
            live.has_decoded = True
        return Burst(report, {live.slot: live for live in lives}, step, begin)

    def _width(self, lives: list[LiveRequest], table: RequestTable) -> int:
        """Return the number of rows to run for some requests of one planner."""
        rooms, runner = self.work.forest.rooms, self.work.runner
        planner, self._narrower = lives[0].planner, None
        if not runs_at_any_width(planner):
            return rooms.rows
        return choose_width(
            max(max(live.rows) for live in lives) + 1,
            row_widths(rooms),
            lambda width: runner.has_made(decode_step_of(planner, width), table),
            lambda width: self._begin_program(table, planner, width),
        )

    def _make(
        self,
        table: RequestTable,
        planner: Planner,
        width: int,
        lives: list[LiveRequest],
    ) -> None:
        """Make a program that is not there; compiling is not decoding time."""
        runner, step = self.work.runner, decode_step_of(planner, width)
        if runner.has_made(step, table):
            return
        with preparing(self.work, "decode", step, calls_of(lives), table):
            nobody = no_turn(self.work.forest.rooms, planner)
            runner.decode(table, nobody, planner, width)
        runner.note_made(step, table)

    def _begin_program(self, table: RequestTable, planner: Planner, width: int) -> None:
        """Begin to make a narrower decode step once it would have paid."""
        step = decode_step_of(planner, width)
        self._narrower = step
        is_worth = self._wanted_s.get(step, 0.0) > WORTH_S
        if is_worth and not self.work.runner.is_being_made(step, table):
            rooms = self.work.forest.rooms
            self.work.runner.start_decode(rooms, table, planner, width)

    def _next_group(self) -> list[LiveRequest]:
        """Return the requests that decode next: those of one planner, in turn."""
        groups: dict[Planner, list[LiveRequest]] = {}
        for live in self.work.forest.lives.values():
            if live.decodes and live.ends_as is None:
                groups.setdefault(live.planner, []).append(live)
        if not groups:
            return []
        planners = list(groups)
        if self._last_planner in groups:
            at = planners.index(self._last_planner) + 1
            planners = planners[at:] + planners[:at]
        self._last_planner = planners[0]
        return groups[planners[0]]

    def _num_steps(self, lives: list[LiveRequest], step: Hashable) -> int:
        """Return how many steps may run before the host looks."""
        if not all(live.has_decoded for live in lives):
            return 1  # The first token is shown as soon as it is there.
        if any(live.needs_each_step for live in lives):
            return 1
        is_alone = len(lives) == len(self.work.forest.lives) and not len(
            self.work.waiting
        )
        is_watched = any(
            live.call.is_watched or live.request.sampling.stop for live in lives
        )
        if is_alone and not is_watched and not self.work.is_open:
            return LOG_STEPS
        return self._pace.steps_within(step)

    def _scores(self, lives: list[LiveRequest]) -> np.ndarray | None:
        """Return what planners that wait are told, [N] float32; None to the others."""
        if not may_wait(lives[0].planner):
            return None
        scores = no_scores(self.work.forest.rooms)
        for live in lives:
            scores[list(live.told)] = list(live.told.values())
            live.told = {}
        return scores

    def _fail(self, lives: list[LiveRequest], error: Exception) -> None:
        """Give an error to the calls of some requests, which end with it."""
        for call in calls_of(lives):
            self.work.fail_call(call, error)

    def look(self, burst: Burst, numbers: Numbers, took: float) -> None:
        """Replay what a burst did, and tell it.

        Args:
            burst: the burst.
            numbers: what it reports.
            took: seconds that it took.
        """
        log = StepLog.unpack(np.asarray(burst.report.log))
        self._pace.note(burst.step, numbers.steps, took)
        if self._narrower is not None:
            self._wanted_s[self._narrower] = (
                self._wanted_s.get(self._narrower, 0.0) + took
            )
        packed = burst.report.tops
        tops = None if isinstance(packed, tuple) else TopLog.unpack(np.asarray(packed))
        planner = next(iter(burst.lives.values())).planner
        try:
            told = self.work.forest.replay.play(log, numbers.steps, tops, planner)
        except DeftError as error:
            self._fail(list(burst.lives.values()), error)
            return
        rooms = self.work.forest.rooms.nodes, self.work.runner.model.config.vocab_size
        for live, notice in plan_notices(log, numbers.steps, burst.lives, rooms):
            live.notice = live.notice or notice
        for call in calls_of(burst.lives.values()):
            mine = {slot for slot, one in burst.lives.items() if one.call is call}
            if not call.is_done:
                with self.work.listening(call):
                    self._tell(call, mine, burst, told, log, numbers)
        for live in burst.lives.values():
            free_idle_rows(self.work.forest, live, numbers)
            if numbers.waiting[live.slot] and not live.call.is_done:
                self._evaluations.begin(live)
        if numbers.overflow:
            self.work.short += list(burst.lives.values())
        self.work.log.add("burst", steps=numbers.steps, seconds=round(took, 6))

    def _tell(
        self,
        call: Call,
        slots: set[int],
        burst: Burst,
        told: list[Told],
        log: StepLog,
        numbers: Numbers,
    ) -> None:
        """Tell a call its tokens and counters."""
        trees = {burst.lives[slot].tree for slot in slots}
        events = [one.event for one in told if one.tree in trees]
        call.tell(events)
        call.progress.note_decoded(burst.begin, time.perf_counter())
        is_alone = len(slots) == len(burst.lives)
        rows = [row for slot in slots for row in burst.lives[slot].rows]
        rows = [row for row in rows if row < len(numbers.row_node)]
        nodes = self.work.forest.rooms.nodes
        branches = int((numbers.row_node[rows] < nodes).sum())
        pages = self.work.forest.rooms.pages
        call.progress.count_burst(
            len(events),
            count_reads(log, numbers.steps, None if is_alone else slots),
            branches,
            (pages - numbers.free_pages, pages),
        )
