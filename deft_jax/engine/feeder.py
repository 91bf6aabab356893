"""Chunks of prompts: started, and looked at when they are done."""

import time
from typing import NamedTuple

import jax

from deft_jax.engine.feeding import Part, build_chunk, next_parts
from deft_jax.engine.live_request import LiveRequest, calls_of
from deft_jax.engine.preparing import preparing
from deft_jax.engine.runner import feed_step
from deft_jax.engine.widths import choose_width, chunk_widths
from deft_jax.engine.work import Work
from deft_jax.runtime.state import Numbers, Report


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


class Feeder:
    """Feeds prompts, and the tokens of preempted requests, chunk by chunk."""

    def __init__(self, work: Work):
        self.work = work

    def start(self) -> Fed | None:
        """Start one chunk, if there is something to feed; no burst may be under way."""
        if not self.work.forest.lives:
            return None
        rooms = self.work.forest.rooms
        parts = next_parts(self._ready(), rooms.chunk)
        if not parts:
            return None
        used = parts[-1].at + parts[-1].end - parts[-1].begin
        asks = any(part.live.request.asks for part in parts)
        width = choose_width(
            used,
            chunk_widths(rooms),
            lambda width: self.work.runner.has_made(feed_step(width, asks)),
            lambda width: self._begin_program(width, asks, parts),
        )
        chunk, question = build_chunk(rooms, width, parts)
        step = feed_step(width, asks)
        calls = calls_of(part.live for part in parts)
        with preparing(self.work, "prefill", step, calls):
            begin = time.perf_counter()
            report = self.work.runner.feed(chunk, question)
        self.work.runner.note_made(step)
        for live, feed, _, end, _, _ in parts:
            feed.fed, live.has_begun, live.is_unconfirmed = end, True, True
        return Fed(report, parts, begin)

    def _ready(self) -> list[LiveRequest]:
        """Return the requests that have tokens to feed, the first to be fed first."""
        ready = []
        for live in self.work.lives_in_order():
            if live.ends_as is not None or live.is_preempted:
                continue
            if live.above is None and not self._look_up(live):
                continue
            if not live.is_fed:
                ready.append(live)
        return ready

    def _look_up(self, live: LiveRequest) -> bool:
        """Find what is cached of a prompt; false if another one is feeding that."""
        if not self.work.forest.look_up(live):
            return False
        self.work.log.add(
            "look up",
            request=live.request.index,
            slot=live.slot,
            tokens=len(live.request.prompt),
            cached=live.num_cached,
        )
        if live.num_cached:
            with self.work.listening(live.call):
                waiting = len(self.work.waiting)
                live.call.progress.count_prompt(0, live.num_cached, waiting)
        return True

    def _begin_program(self, width: int, asks: bool, parts: list[Part]) -> None:
        """Begin to make the program of a short chunk, if chunks will often be short."""
        is_often = any(part.live.num_cached for part in parts) and not asks
        if is_often and not self.work.runner.is_being_made(feed_step(width, asks)):
            self.work.runner.start_feed(self.work.forest.rooms, width)

    def look(self, fed: Fed, numbers: Numbers, took: float) -> None:
        """Note what a chunk has fed; nothing, if it did not fit.

        Args:
            fed: the chunk.
            numbers: what it reports.
            took: seconds that it took.
        """
        if numbers.overflow:
            for live, feed, begin, _, _, is_first in reversed(fed.parts):
                feed.fed, live.is_unconfirmed = begin, False
                live.has_begun &= not is_first
            self.work.short += list({part.live: None for part in reversed(fed.parts)})
            return
        if fed.report.scores is not None:
            self._note_scores(fed)
        for live, feed, begin, end, *_ in fed.parts:
            live.is_unconfirmed = False
            if feed.cached is not None:
                if feed.place == "prefix":
                    feed.cached.node = int(numbers.feeding[live.slot])
                feed.cached.is_fed = feed.is_done
            if feed.place != "node":
                live.num_counted += end - begin
        lives = list({part.live: None for part in fed.parts})
        for live in lives:
            if numbers.not_finite[live.slot]:
                own = [part for part in fed.parts if part.live is live]
                self.work.fail_not_finite(
                    live,
                    "the hidden states of its prompt",
                    is_shared=any(part.feed.place == "prefix" for part in own),
                )
            elif live.is_fed and live.request.strategy is not None:
                live.feeds.clear()
                if live.root is None:
                    live.root = int(numbers.roots[live.slot])
                    self.work.forest.replay.start(live.root, live.tree)
        for call in calls_of(lives):
            mine = [part for part in fed.parts if part.live.call is call]
            read = sum(p.end - p.begin for p in mine if p.feed.place != "node")
            call.progress.prefill_s += took
            with self.work.listening(call):
                call.progress.count_prompt(read, 0, len(self.work.waiting))
        self.work.log.add("feed", tokens=sum(p.end - p.begin for p in fed.parts))

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
