"""The loop of the engine: edits, admissions, chunks of prompts and bursts of steps."""

import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np

from deft_jax.capacity import Capacity
from deft_jax.engine.call import Call, Ended
from deft_jax.engine.compilation_cache import watch_compilations
from deft_jax.engine.event_log import EventLog
from deft_jax.engine.feeding import Part, build_chunk, next_parts
from deft_jax.engine.forest import Forest
from deft_jax.engine.host_tree import HostTree, Tokenizer
from deft_jax.engine.live_request import LiveRequest
from deft_jax.engine.log_replay import Told
from deft_jax.engine.pace import Pace
from deft_jax.engine.plan_notices import plan_notices
from deft_jax.engine.programs import StopRequested
from deft_jax.engine.progress import count_reads
from deft_jax.engine.reading import Reading
from deft_jax.engine.request import Request
from deft_jax.engine.runner import Runner, decode_step_of, feed_step, no_turn
from deft_jax.engine.scheduler import Waiting, WaitingList
from deft_jax.engine.shortage import (
    count_evictable,
    pages_to_come,
    pages_to_start,
    victim,
)
from deft_jax.engine.widths import choose_width, chunk_widths, row_widths
from deft_jax.runtime.forward import Model
from deft_jax.runtime.state import LOG_STEPS, Numbers, Report, StepLog, Turn
from deft_jax.runtime.top_log import TopLog
from deft_jax.sampling.request_table import RequestTable, make_request_table
from deft_jax.strategies.protocol import Planner
from deft_jax.strategies.traits import ends_branches, runs_at_any_width
from deft_jax.tree.state import OUT_OF_NODES

WORTH_S = 2.0
"""Seconds for which a narrower decode step must have been wanted before it is made."""


class Fed(NamedTuple):
    """A chunk that the device may still be at.

    Attributes:
        report: what it will tell.
        parts: what it feeds.
        begin: clock when it was started, in seconds.
    """

    report: Report
    parts: list[Part]
    begin: float


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


class DecodeLoop:
    """Runs requests on a runner, turn by turn; one thread calls it.

    Attributes:
        forest: who sits where, what is cached, what is to change.
        waiting: requests without a slot.
        calls: the calls that have a request here.
        is_open: true while requests may come at any time, so that bursts are short.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        choose_capacity: Callable[[Sequence[Request], Capacity | None], Capacity],
        *,
        shares: bool,
        log: EventLog,
        checks: bool = False,
    ):
        """Set the loop up; nothing is allocated.

        Args:
            runner: owns the state and the programs.
            tokenizer: turns tokens into text.
            choose_capacity: returns the capacity for waiting requests, given the
                present one, when no request has a slot.
            shares: true to cache prompts and paths.
            log: what events are written to.
            checks: true to check the forest after every edit and at every end.
        """
        self.runner, self.tokenizer = runner, tokenizer
        self.forest = Forest(runner, shares)
        self.waiting = WaitingList()
        self.calls: list[Call] = []
        self.is_open = False
        self._choose_capacity = choose_capacity
        self._log, self._checks = log, checks
        self._flight: deque[Fed | Burst] = deque()
        self._pace = Pace()
        self._looked_at = 0.0
        self._wanted_s: dict[Hashable, float] = {}
        self._narrower: Hashable = None
        self._table: RequestTable | None = None
        self._short: list[LiveRequest] = []
        self._is_held = False
        self._num_started = 0
        self._last_planner: Planner | None = None
        runner.should_stop = self._all_want_to_stop

    # What the driver asks for.

    def submit(self, call: Call) -> None:
        """Take the requests of a call; they wait for their turn."""
        self.calls.append(call)
        for request in call.requests:
            self.waiting.add(request, call)
            self._log.add("submit", request=request.index, tokens=len(request.prompt))

    @property
    def is_idle(self) -> bool:
        """True if there is nothing to do."""
        return not (self.calls or self._flight or self.waiting or self.forest.lives)

    def fail(self, error: BaseException) -> None:
        """Give an error to every call, and forget all there is on the device."""
        self.waiting.remove(lambda waiting: True)
        self._flight.clear()
        self._short = []
        self._table = None
        self.forest.reset()
        calls, self.calls = self.calls, []
        for call in calls:
            call.fail(error)

    def clear_cache(self) -> None:
        """Forget what no request uses, and free its pages."""
        self._look(0)
        self._settle()
        for pinned in (False, True):
            while self.forest.evict(self.forest.num_cached, 0, pinned=pinned):
                pass
        self._settle()

    def replace_model(self, model: Model) -> None:
        """Take another network, whose KV none of the cached paths have."""
        self.clear_cache()
        self.runner.replace_model(model)
        if not self.runner.has_state:
            self.forest.reset()

    def turn(self) -> None:
        """Do one round: heed callers, change the forest, admit, feed, decode, look."""
        try:
            self._heed_callers()
            if self._must_look:
                self._look(0)
            if not self._flight:
                self._settle()
                self._admit()
                self._feed()
            self._decode()
            self._look(0 if self._must_look else 1)
        except StopRequested:
            self._interrupt_all()

    @property
    def _must_look(self) -> bool:
        """True if the next turn depends on what the device is at."""
        lives = self.forest.lives.values()
        return bool(
            self._short
            or len(self.waiting)
            or (self.forest.capacity is not None and self.forest.has_changes)
            or any(self._is_over(live) or not live.decodes for live in lives)
        )

    # Callers.

    def _heed_callers(self) -> None:
        """Ask callers whether to stop, and note which requests are not wanted."""
        for call in list(self.calls):
            try:
                stops = call.should_stop is not None and call.should_stop()
            except BaseException as error:
                self._fail_call(call, error)
                continue
            if stops:
                for request in call.requests:
                    call.cancel(request.index)

        def is_out(waiting: Waiting) -> bool:
            return waiting.call.is_cancelled(waiting.request.index)

        for waiting in self.waiting.remove(is_out):
            tree = self._new_tree(waiting.request)
            tree.fail("interrupted")
            self._end_call(waiting.call, Ended(waiting.request.index, tree))
        for live in self.forest.lives.values():
            if live.call.is_cancelled(live.request.index) and live.ends_as is None:
                # What the device is still at is not told any more.
                live.ends_as = "interrupted"
                live.tree.fail("interrupted")

    def _all_want_to_stop(self) -> bool:
        """Say whether no call wants the program that is being made any more."""

        def wants_to_stop(call: Call) -> bool:
            return call.should_stop is not None and call.should_stop()

        return all(
            call.is_cancelled_whole or wants_to_stop(call) for call in self.calls
        )

    def _interrupt_all(self) -> None:
        """End every request where it stands, without a program; start anew."""
        for waiting in self.waiting.remove(lambda waiting: True):
            tree = self._new_tree(waiting.request)
            tree.fail("interrupted")
            self._end_call(waiting.call, Ended(waiting.request.index, tree))
        lives = list(self.forest.lives.values())
        self._flight.clear()
        self._short = []
        self._table = None
        self.forest.reset()
        for live in lives:
            live.tree.fail("interrupted")
            self._end_call(live.call, Ended(live.request.index, live.tree))

    def _fail_call(self, call: Call, error: BaseException) -> None:
        """Give an error to one call; its requests leave with the next edit."""
        self.waiting.remove(lambda waiting: waiting.call is call)
        for live in self.forest.lives.values():
            if live.call is call:
                live.ends_as = live.ends_as or "interrupted"
        if call in self.calls:
            self.calls.remove(call)
        call.fail(error)

    def _end_call(self, call: Call, ended: Ended) -> None:
        """Give a request's result to its call."""
        try:
            call.end(ended)
        except BaseException as error:
            self._fail_call(call, error)
        if call.is_done and call in self.calls:
            self.calls.remove(call)

    @contextmanager
    def _listening(self, call: Call):
        """Let an error of a listener end its call alone."""
        try:
            yield
        except BaseException as error:
            self._fail_call(call, error)

    # Between bursts.

    def _settle(self) -> None:
        """Make room, change the forest, and give the ended requests their results."""
        if self.forest.capacity is None:
            return
        for live in list(self.forest.lives.values()):
            if live.ends_as is not None:
                self._end_early(live)
        if self._short:
            self._make_room()
        while self.forest.has_changes:
            self.forest.change()
            self._check()
            self._end_over()
        self._end_over()

    def _end_over(self) -> None:
        """End the requests that the device has ended, and readings that are done."""
        over = [live for live in self.forest.lives.values() if self._is_over(live)]
        if not over:
            return
        for live in over:
            if self.forest.numbers.not_finite[live.slot]:
                self._fail_not_finite(live, "the logits of a branch")
            elif live.request.strategy is not None:
                live.tree.close("pruned")
        paths = [live for live in over if live.ends_as is None]
        self.forest.keep_paths([live for live in paths if self.forest.rests(live)])
        for live in over:
            self._leave(live)

    def _is_over(self, live: LiveRequest) -> bool:
        """Say whether a request has nothing more to do on the device."""
        if live.ends_as is not None:
            return True
        if live.request.strategy is None:
            return live.is_fed and not live.is_unconfirmed
        root = int(self.forest.numbers.roots[live.slot])
        return live.root is not None and root >= self.forest.rooms.nodes

    def _end_early(self, live: LiveRequest) -> None:
        """End a request for a reason of the host's."""
        assert live.ends_as is not None
        live.tree.fail(live.ends_as)
        self.forest.drop(live)
        self._leave(live)

    def _leave(self, live: LiveRequest) -> None:
        """Take a request's seat, and give its result to its call."""
        pin = live.pin
        if live.request.strategy is None and live.request.pin:
            pin = self.forest.pin([live.holder])
        self.forest.leave(live)
        self._table, self._is_held = None, False
        self._log.add("finish", request=live.request.index, slot=live.slot)
        reading = Reading(tuple(live.scores), live.top)
        ended = Ended(live.request.index, live.tree, live.notice, pin, reading)
        if not live.call.is_done:
            self._end_call(live.call, ended)

    def _check(self) -> None:
        if self._checks:
            self.runner.state.tree.check()

    # Shortage.

    def _make_room(self) -> None:
        """Evict cached paths, preempt a request, or end the only one there is.

        Where a request was preempted none starts or goes on before another has left.
        """
        forest, short = self.forest, self._short
        self._short = []
        gives_way = bool(forest.pending.dropped) or forest.replay.has_dropped
        forest.pending.clears = True
        if gives_way:
            return
        lives = list(forest.lives.values())
        rows = sum(len(live.rows) for live in lives)
        tokens = sum(min(live.num_to_feed, forest.rooms.chunk) for live in lives)
        pages = rows + forest.rooms.pages_for(tokens) + 1
        nodes = rows + 2 if forest.numbers.overflow & OUT_OF_NODES else 0
        if gone := forest.evict(pages, nodes) or forest.evict_finished():
            self._log.add("evict", nodes=gone)
            return
        holders = [
            live
            for live in lives
            if (live.has_begun or live is short[0]) and not live.is_preempted
        ]
        chosen = victim(holders)
        if chosen is not None:
            self._preempt(chosen)
        elif not forest.evict(pages, nodes, pinned=True):
            for live in holders:
                live.ends_as, live.notice = "capacity", self._ran_out(live)
                self._end_early(live)

    def _preempt(self, live: LiveRequest) -> None:
        """Free the pages of a request; it goes on later, where it was."""
        self._log.add("preempt", request=live.request.index, slot=live.slot)
        self._is_held = True
        if live.root is not None:
            self.forest.release(live)
            return
        self.forest.drop(live)
        self.forest.leave(live)
        self._table = None
        with self._listening(live.call):
            live.call.progress.count_prompt(
                -live.num_counted, -live.num_cached, len(self.waiting) + 1
            )
        self.waiting.put_back(live.request, live.call)

    def _ran_out(self, live: LiveRequest) -> str:
        rooms = self.forest.rooms
        tokens = live.call.progress.status.generated_tokens
        return (
            f"the KV pool of {rooms.pages} pages of {rooms.page_size} tokens and "
            f"{rooms.nodes} nodes ran out after {tokens} tokens; what was generated is "
            "kept; raise the capacity, or lower n or max_new_tokens"
        )

    def _fail_not_finite(self, live: LiveRequest, what: str) -> None:
        """Note that a request's numbers are not finite."""
        tokens = sum(len(branch.logprobs) for branch in live.tree.branches.values())
        live.notice = (
            f"{what} became NaN or infinite after {len(live.request.prompt)} prompt "
            f"tokens and {tokens} generated ones; what was generated is kept; check "
            f"the model's weights, or use a wider dtype than {self.runner.model.dtype}"
        )
        live.ends_as = "not-finite"
        live.tree.fail("not-finite")
        if live.fed_node is not None:
            # What is stored of it is not what the model says: nobody may share it.
            live.fed_node.is_fed = False

    # Admission.

    def _admit(self) -> None:
        """Give slots to waiting requests while there is room for them."""
        if self.forest.lives:
            self._resume()
        while len(self.waiting):
            if not self.forest.lives and not self._prepare():
                return
            waiting = next(iter(self.waiting))
            if not self._has_room(waiting.request):
                return
            self.waiting.take(waiting)
            self._start(waiting)

    def _prepare(self) -> bool:
        """Choose a capacity while no request has a slot; say whether there is one."""
        while len(self.waiting):
            requests = [waiting.request for waiting in self.waiting]
            first = next(iter(self.waiting))
            try:
                capacity = self._choose_capacity(requests, self.forest.capacity)
                for request in first.call.requests:
                    request.check(capacity)
                self.forest.prepare(capacity)
                return True
            except Exception as error:
                self._fail_call(first.call, error)
        return False

    def _has_room(self, request: Request) -> bool:
        """Say whether a request can start beside those that have."""
        forest = self.forest
        rooms, lives = forest.rooms, forest.lives.values()
        if not lives:
            self._is_held = False
            return True
        if self._is_held or not forest.seats.has(request):
            return False
        pages, nodes = count_evictable(forest.cache, rooms)
        cached = 0
        if forest.shares:
            cached = forest.cache.match(request.prompt, request.most_shared).tokens
        free_pages = forest.numbers.free_pages + pages - pages_to_come(lives, rooms)
        held = sum(1 for _ in forest.cache.nodes()) - nodes
        free_nodes = rooms.nodes - held - sum(live.request.nodes for live in lives)
        needed = pages_to_start(request, rooms, cached)
        return needed <= free_pages and request.nodes <= free_nodes

    def _resume(self) -> None:
        """Let preempted requests be fed again while there is room for them."""
        forest = self.forest
        for live in sorted(forest.lives.values(), key=_rank):
            if not live.is_preempted:
                continue
            others = [one for one in forest.lives.values() if not one.is_preempted]
            if others and (self._is_held or not self._has_room_again(live, others)):
                return
            live.is_preempted = False
            self._log.add("resume", request=live.request.index, slot=live.slot)

    def _has_room_again(self, live: LiveRequest, others: list[LiveRequest]) -> bool:
        """Say whether a preempted request can go on beside others."""
        forest = self.forest
        pages, _ = count_evictable(forest.cache, forest.rooms)
        free = forest.numbers.free_pages + pages
        free -= pages_to_come(others, forest.rooms)
        return pages_to_come([live], forest.rooms) <= free

    def _start(self, waiting: Waiting) -> None:
        """Give a request its slot and its rows."""
        request = waiting.request
        slot, rows = self.forest.seats.take(request.rows)
        tree = self._new_tree(request)
        live = LiveRequest(request, waiting.call, slot, rows, tree, self._num_started)
        self._num_started += 1
        if request.strategy is not None:
            planner = request.strategy.planner
            others = self.forest.lives.values()
            if planner not in [one.planner for one in others if one.request.strategy]:
                self.runner.start_planner(planner)
        self.forest.seat(live)
        self._table = None
        self._log.add("start", request=request.index, slot=slot, rows=rows)

    def _new_tree(self, request: Request) -> HostTree:
        return HostTree(
            request.index,
            request.prompt,
            request.text,
            self.tokenizer,
            request.sampling.stop,
            math.inf if ends_branches(request.strategy) else request.limit,
            request.sampling.logprobs,
        )

    # Feeding.

    def _feed(self) -> None:
        """Start one chunk, if there is something to feed."""
        if not self.forest.lives:
            return
        ready = []
        for live in sorted(self.forest.lives.values(), key=_rank):
            if live.above is None and live.ends_as is None:
                if not self.forest.look_up(live):
                    continue  # Another one is feeding what both begin with.
                self._log.add(
                    "look up",
                    request=live.request.index,
                    slot=live.slot,
                    tokens=len(live.request.prompt),
                    cached=live.num_cached,
                )
                with self._listening(live.call):
                    waiting = len(self.waiting)
                    if live.num_cached:
                        live.call.progress.count_prompt(0, live.num_cached, waiting)
            if live.ends_as is None and not live.is_preempted and not live.is_fed:
                ready.append(live)
        rooms = self.forest.rooms
        parts = next_parts(ready, rooms.chunk)
        if not parts:
            return
        used = parts[-1].at + parts[-1].end - parts[-1].begin
        asks = any(part.live.request.asks for part in parts)
        width = choose_width(
            used,
            chunk_widths(rooms),
            lambda width: self.runner.has_made(feed_step(width, asks)),
            lambda width: self._begin_feed(width, asks, parts),
        )
        chunk, question = build_chunk(rooms, width, parts)
        step = feed_step(width, asks)
        calls = {part.live.call: None for part in parts}
        with self._preparing("prefill", step, list(calls)):
            begin = time.perf_counter()
            report = self.runner.feed(chunk, question)
        self.runner.note_made(step)
        for live, feed, _, end, _, _ in parts:
            feed.fed, live.has_begun, live.is_unconfirmed = end, True, True
        self._flight.append(Fed(report, parts, begin))

    def _begin_feed(self, width: int, asks: bool, parts: list[Part]) -> None:
        """Begin to make the program of a short chunk, if chunks will often be short."""
        is_often = any(part.live.num_cached for part in parts) and not asks
        if is_often and not self.runner.is_being_made(feed_step(width, asks)):
            self.runner.start_feed(width)

    def _look_at_chunk(self, fed: Fed) -> None:
        """Note what a chunk has fed; nothing, if it did not fit."""
        numbers = self.forest.note(fed.report)
        took = self._took(fed.begin)
        if numbers.overflow:
            for live, feed, begin, _, _, is_first in reversed(fed.parts):
                feed.fed, live.is_unconfirmed = begin, False
                live.has_begun &= not is_first
            self._short.append(fed.parts[-1].live)
            return
        if fed.report.scores is not None:
            self._note_scores(fed)
        for live, feed, begin, end, *_ in fed.parts:
            live.is_unconfirmed = False
            if feed.place == "prefix" and live.fed_node is not None:
                live.fed_node.node = int(numbers.feeding[live.slot])
                live.fed_node.is_fed = feed.is_done
            if feed.place != "node":
                live.num_counted += end - begin
        lives = list({part.live: None for part in fed.parts})
        for live in lives:
            if numbers.not_finite[live.slot]:
                self._fail_not_finite(live, "the hidden states of its prompt")
            elif live.is_fed and live.request.strategy is not None:
                live.feeds.clear()
                if live.root is None:
                    live.root = int(numbers.roots[live.slot])
                    self.forest.replay.start(live.root, live.tree)
        for call in list({live.call: None for live in lives}):
            mine = [part for part in fed.parts if part.live.call is call]
            read = sum(p.end - p.begin for p in mine if p.feed.place != "node")
            call.progress.prefill_s += took
            with self._listening(call):
                call.progress.count_prompt(read, 0, len(self.waiting))
        self._log.add("feed", tokens=sum(p.end - p.begin for p in fed.parts))

    def _note_scores(self, fed: Fed) -> None:
        """Keep the log-probabilities that were asked for."""
        scores = jax.device_get(fed.report.scores)
        for live, feed, begin, end, at, _ in fed.parts:
            request = live.request
            for i in range(end - begin):
                target = feed.offset + begin + i + 1
                wanted = request.score_from is not None and target >= request.score_from
                if wanted and target < len(request.prompt):
                    live.scores.append(float(scores.logprob[at + i]))
            if request.num_top and feed.offset + end == len(request.prompt):
                tokens = scores.top_token[live.slot].tolist()
                values = scores.top_logprob[live.slot].tolist()
                live.top = tuple(zip(tokens, values, strict=True))[: request.num_top]

    # Decoding.

    def _decode(self) -> None:
        """Start one burst, if a request decodes."""
        lives = self._next_group()
        if not lives:
            return
        planner = lives[0].planner
        rooms = self.forest.rooms
        table = self._request_table()
        width, self._narrower = rooms.rows, None
        if runs_at_any_width(planner):
            width = choose_width(
                max(max(live.rows) for live in lives) + 1,
                row_widths(rooms),
                lambda width: self.runner.has_made(
                    decode_step_of(planner, width), table
                ),
                lambda width: self._begin_decode(table, planner, width),
            )
        step = decode_step_of(planner, width)
        calls = list({live.call: None for live in lives})
        if not self.runner.has_made(step, table):
            with self._preparing("decode", step, calls, table):
                # No step: compiling is not decoding time.
                self.runner.decode(table, no_turn(rooms), planner, width)
            self.runner.note_made(step, table)
        is_in = np.zeros(rooms.requests, bool)
        rests = np.zeros(rooms.requests, bool)
        for live in lives:
            is_in[live.slot], rests[live.slot] = True, self.forest.rests(live)
        begin = time.perf_counter()
        turn = Turn(is_in, rests, np.int32(self._num_steps(lives, step)))
        report = self.runner.decode(table, turn, planner, width)
        for live in lives:
            live.has_decoded = True
        by_slot = {live.slot: live for live in lives}
        self._flight.append(Burst(report, by_slot, step, begin))

    def _next_group(self) -> list[LiveRequest]:
        """Return the requests that decode next: those of one planner, in turn."""
        groups: dict[Planner, list[LiveRequest]] = {}
        for live in self.forest.lives.values():
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
        is_alone = len(lives) == len(self.forest.lives) and not len(self.waiting)
        is_watched = any(
            live.call.is_watched or live.request.sampling.stop for live in lives
        )
        if is_alone and not is_watched and not self.is_open:
            return LOG_STEPS
        return self._pace.steps_within(step)

    def _begin_decode(self, table: RequestTable, planner: Planner, width: int) -> None:
        """Begin to make a narrower decode step once it would have paid."""
        step = decode_step_of(planner, width)
        self._narrower = step
        is_worth = self._wanted_s.get(step, 0.0) > WORTH_S
        if is_worth and not self.runner.is_being_made(step, table):
            self.runner.start_decode(table, planner, width)

    def _request_table(self) -> RequestTable:
        """Return what the device is told of the requests, made when they change."""
        if self._table is None:
            slots = range(self.forest.rooms.requests)
            lives = [self.forest.lives.get(slot) for slot in slots]
            self._table = make_request_table(
                [live and live.request.sampling for live in lives],
                [live and live.request.limit for live in lives],
                self.tokenizer.eos_token_ids,
            )
        return self._table

    # Looking at what the device has done.

    def _look(self, left: int) -> None:
        """Look at the oldest programs under way until so many are left."""
        while len(self._flight) > left:
            item = self._flight.popleft()
            if isinstance(item, Fed):
                self._look_at_chunk(item)
            else:
                self._look_at_burst(item)

    def _look_at_burst(self, burst: Burst) -> None:
        """Replay what a burst did, and tell it."""
        log = StepLog.unpack(np.asarray(burst.report.log))
        numbers = self.forest.note(burst.report)
        now = time.perf_counter()
        took = now - max(burst.begin, self._looked_at)
        self._pace.note(burst.step, numbers.steps, took)
        self._looked_at = now
        if self._narrower is not None:
            self._wanted_s[self._narrower] = (
                self._wanted_s.get(self._narrower, 0.0) + took
            )
        packed = burst.report.tops
        tops = None if isinstance(packed, tuple) else TopLog.unpack(np.asarray(packed))
        planner = next(iter(burst.lives.values())).planner
        told = self.forest.replay.play(log, numbers.steps, tops, planner)
        rooms = self.forest.rooms.nodes, self.runner.model.config.vocab_size
        for live, notice in plan_notices(log, numbers.steps, burst.lives, rooms):
            live.notice = live.notice or notice
        for call in list({live.call: None for live in burst.lives.values()}):
            mine = {slot for slot, one in burst.lives.items() if one.call is call}
            if not call.is_done:
                with self._listening(call):
                    self._tell(call, mine, burst, told, log, numbers, now)
        if numbers.overflow:
            self._short += list(burst.lives.values())
        self._log.add("burst", steps=numbers.steps, seconds=round(took, 6))

    def _tell(
        self,
        call: Call,
        slots: set[int],
        burst: Burst,
        told: list[Told],
        log: StepLog,
        numbers: Numbers,
        now: float,
    ) -> None:
        """Tell a call its tokens and counters."""
        trees = {burst.lives[slot].tree for slot in slots}
        events = [one.event for one in told if one.tree in trees]
        call.tell(events)
        call.progress.note_decoded(burst.begin, now)
        is_alone = len(slots) == len(burst.lives)
        rows = [row for slot in slots for row in burst.lives[slot].rows]
        rows = [row for row in rows if row < len(numbers.row_node)]
        nodes = self.forest.rooms.nodes
        branches = int((numbers.row_node[rows] < nodes).sum())
        pages = self.forest.rooms.pages
        call.progress.count_burst(
            len(events),
            count_reads(log, numbers.steps, None if is_alone else slots),
            branches,
            (pages - numbers.free_pages, pages),
        )

    def _took(self, begin: float) -> float:
        """Return the seconds since a program began, or since the last look."""
        now = time.perf_counter()
        took = now - max(begin, self._looked_at)
        self._looked_at = now
        return took

    @contextmanager
    def _preparing(
        self,
        what: str,
        step: Hashable,
        calls: list[Call],
        table: RequestTable | None = None,
    ):
        """Tell callers that a program is made, and whether it was compiled for that.

        JAX says whether a program is read from a cache only when it is there.
        """
        if self.runner.has_made(step, table):
            yield
            return

        def tell(message: str) -> None:
            for call in calls:
                with self._listening(call):
                    call.progress.report("compile", message)

        tell(f"preparing the {what} step")
        with watch_compilations() as compilations:
            yield
        if compilations.seconds:
            kept = "; kept for next time" if compilations.kept else ""
            tell(f"compiled the {what} step in {compilations.seconds:.1f} s{kept}")


def _rank(live: LiveRequest) -> tuple[int, int]:
    """Return what requests with a slot are sorted by: priority, then their start."""
    return -live.request.priority, live.number
