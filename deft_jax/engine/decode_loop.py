"""The loop of the engine: edits, admissions, chunks of prompts and bursts of steps."""

import time
from collections import deque

import jax

from deft_jax.engine.admission import Admission, ChooseCapacity
from deft_jax.engine.bursts import Burst, Decoder
from deft_jax.engine.call import Ended
from deft_jax.engine.feeder import Fed, Feeder
from deft_jax.engine.live_request import LiveRequest
from deft_jax.engine.programs import StopRequested
from deft_jax.engine.row_moves import move_rows, plan_moves
from deft_jax.engine.shortage import Shortage
from deft_jax.engine.work import Work
from deft_jax.errors import DeftError
from deft_jax.runtime.forward import Model


class DecodeLoop:
    """Runs requests turn by turn; one thread calls it.

    What is started on the device is under way, oldest first, until the host looks at
    it. A burst is started before the host looks at the one before, unless what is to be
    done next depends on that:

        turn    look ........ change admit chunk burst ..... look
                (if it must)  (if nothing is under way)    (all, or all but one)

    Attributes:
        work: the requests.
    """

    def __init__(
        self, work: Work, choose_capacity: ChooseCapacity, *, checks: bool = False
    ):
        """Set the loop up; nothing is allocated.

        Args:
            work: the requests, none so far.
            choose_capacity: returns the capacity for waiting requests, given the
                present one, when no request has a slot.
            checks: true to check the forest after every edit.
        """
        self.work = work
        self._admission = Admission(work, choose_capacity)
        self._feeder, self._decoder = Feeder(work), Decoder(work)
        self._shortage, self._checks = Shortage(work), checks
        self._flight: deque[Fed | Burst] = deque()
        self._looked_at = 0.0
        work.runner.should_stop = self._all_want_to_stop

    @property
    def is_idle(self) -> bool:
        """True if there is nothing to do."""
        work = self.work
        return not (work.calls or self._flight or work.waiting or work.forest.lives)

    @property
    def only_waits(self) -> bool:
        """True if nothing goes on before a strategy has given its scores."""
        lives = self.work.forest.lives.values()
        return not self._flight and bool(lives) and all(x.is_waiting for x in lives)

    def fail(self, error: BaseException) -> None:
        """Give an error to every call, and forget all there is on the device."""
        self.work.waiting.remove(lambda waiting: True)
        self._flight.clear()
        self.work.clear()
        calls, self.work.calls = self.work.calls, []
        for call in calls:
            call.fail(error)

    def clear_cache(self) -> None:
        """Forget what no request uses, and free its pages."""
        self._look(0)
        self._settle()
        forest = self.work.forest
        for pinned in (False, True):
            while forest.evict(forest.num_cached, 0, pinned=pinned):
                pass
        self._settle()

    def replace_model(self, model: Model) -> None:
        """Take another network, whose KV none of the cached paths have.

        Raises:
            DeftError: requests run or wait.
        """
        self._look(0)
        self._settle()
        if self.work.calls:
            raise DeftError(
                f"the network can be replaced while no request runs, and "
                f"{len(self.work.calls)} calls do; wait for their results first"
            )
        self.clear_cache()
        self.work.runner.replace_model(model)
        if not self.work.runner.has_state:
            self.work.forest.reset()

    def turn(self) -> None:
        """Do one round."""
        try:
            self._heed_callers()
            if self._must_look:
                self._look(0)
            if not self._flight:
                self._settle()
                self._admission.admit()
                self._add(self._feeder.start())
            self._add(self._decoder.start())
            self._look(0 if self._must_look else 1)
        except StopRequested:
            self._interrupt_all()

    def _add(self, started: Fed | Burst | None) -> None:
        if started is not None:
            self._flight.append(started)

    @property
    def _must_look(self) -> bool:
        """True if what is to be done next depends on what the device is at."""
        work, lives = self.work, self.work.forest.lives.values()
        return bool(
            work.short
            or len(work.waiting)
            or (work.forest.capacity is not None and work.forest.has_changes)
            or any(self._is_over(live) or not live.decodes for live in lives)
            or any(live.needs_look for live in lives)
            or (work.forest.capacity is not None and plan_moves(work.forest))
        )

    def _look(self, left: int) -> None:
        """Look at the oldest programs under way until so many are left."""
        while len(self._flight) > left:
            item = self._flight.popleft()
            # All arrays of the report at once: each wait for the device costs time.
            # What is queued behind other programs begins when these are done.
            item = item._replace(
                report=jax.device_get(item.report),
                begin=max(item.begin, self._looked_at),
            )
            numbers = self.work.forest.note(item.report)
            now = time.perf_counter()
            took, self._looked_at = now - item.begin, now
            if isinstance(item, Fed):
                self._feeder.look(item, numbers, took)
            else:
                self._decoder.look(item, numbers, took)

    # Callers.

    def _heed_callers(self) -> None:
        """Ask callers whether to stop, and note which requests are not wanted."""
        work = self.work
        self._all_want_to_stop()
        work.interrupt_waiting(lambda one: one.call.is_cancelled(one.request.index))
        for live in work.forest.lives.values():
            if live.call.is_cancelled(live.request.index) and live.ends_as is None:
                # What the device is still at is not told any more.
                live.ends_as = "interrupted"
                live.tree.fail("interrupted")

    def _all_want_to_stop(self) -> bool:
        """Say whether no call wants the program that is being made any more."""
        for call in list(self.work.calls):
            with self.work.listening(call):
                if call.should_stop is not None and call.should_stop():
                    call.cancel_all()
        return all(call.is_cancelled_whole for call in self.work.calls)

    def _interrupt_all(self) -> None:
        """End every request where it stands, without a program; start anew."""
        work = self.work
        work.interrupt_waiting(lambda waiting: True)
        self._flight.clear()
        for live in work.clear():
            live.tree.fail("interrupted")
            ended = Ended(live.request.index, live.tree, ends_as="interrupted")
            work.end(live.call, ended)

    # Between bursts.

    def _settle(self) -> None:
        """Make room, change the forest, and give the ended requests their results."""
        work, forest = self.work, self.work.forest
        if forest.capacity is None:
            return
        work.end_marked()
        if work.short:
            self._shortage.make_room()
        if (moves := plan_moves(forest)) is not None:
            move_rows(forest, moves)
        while forest.has_changes:
            forest.change()
            if self._checks:
                work.runner.state.tree.check()
            self._end_over()
        self._end_over()

    def _end_over(self) -> None:
        """End the requests that the device has ended, and readings that are done."""
        work, forest = self.work, self.work.forest
        work.end_marked()
        over = [live for live in forest.lives.values() if self._is_over(live)]
        for live in over:
            if forest.numbers.not_finite[live.slot]:
                work.fail_not_finite(live, "the logits of a branch")
            elif live.request.strategy is not None:
                live.tree.close("pruned")
        rested = [live for live in over if live.ends_as is None and forest.rests(live)]
        forest.keep_paths(rested)
        for live in over:
            work.leave(live)

    def _is_over(self, live: LiveRequest) -> bool:
        """Say whether a request has nothing more to do on the device."""
        if live.ends_as is not None:
            return True
        if live.request.strategy is None:
            return live.is_fed and not live.is_unconfirmed
        root = int(self.work.forest.numbers.roots[live.slot])
        return live.root is not None and root >= self.work.forest.rooms.nodes
