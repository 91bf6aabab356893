"""One call of the engine: admits requests, feeds prompts, runs bursts of steps."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.engine.host_tree import HostTree, Tokenizer
from deft_jax.engine.log_replay import LogReplay
from deft_jax.engine.plan_notices import plan_notices
from deft_jax.engine.programs import StopRequested, never_stop
from deft_jax.engine.progress import Progress
from deft_jax.engine.request import Request
from deft_jax.engine.runner import PREFILL, Runner
from deft_jax.engine.scheduler import Part, Scheduler
from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import FinishReason, TokenEvent
from deft_jax.runtime.state import DecodeState, StepLog
from deft_jax.runtime.top_log import TopLog
from deft_jax.sampling.params import Sampling
from deft_jax.sampling.request_table import make_request_table
from deft_jax.strategies.protocol import Strategy

STREAM_STEPS = 4
"""Decode steps between two looks of the host while text is streamed."""


class Burst(NamedTuple):
    """Decode steps that the device may still be at.

    Attributes:
        report: copies of what the host looks at when the steps are done.
        begin: clock at their start, in seconds.
    """

    report: dict[str, jax.Array]
    begin: float


class Generation:
    """Runs the requests of one call on a runner whose state is empty."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        strategy: Strategy,
        sampling: Sampling,
        requests: list[Request],
    ):
        assert runner.capacity is not None
        self.runner, self.tokenizer = runner, tokenizer
        self.strategy, self.sampling = strategy, sampling
        self.capacity = runner.capacity
        self.requests = requests
        self.scheduler = Scheduler(requests, self.capacity)
        has_limit = not getattr(strategy, "ends_branches", False)
        self.trees = [
            HostTree(
                r.index,
                r.prompt,
                r.text,
                tokenizer,
                sampling.stop,
                r.limit if has_limit else math.inf,
                sampling.logprobs,
            )
            for r in requests
        ]
        self.replay = LogReplay(self.capacity.nodes, runner.model.config.vocab_size)
        self.notices: dict[int, str] = {}
        prompt_tokens = sum(len(r.prompt) for r in requests)
        self.progress = Progress(runner.model, self.capacity, prompt_tokens)
        self.ahead: Burst | None = None
        self.no_node = np.zeros(self.capacity.nodes, bool)

    def run(
        self,
        on_token: Callable[[TokenEvent], None] | None,
        on_status: Callable[[Status], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> list[GenerationTree]:
        """Run all requests to their ends; the arguments are those of `Engine.generate`.

        Raises:
            DeftError: the strategy's plans cannot be carried out.
        """
        self.on_token = on_token or (lambda event: None)
        self.progress.on_status = on_status or (lambda status: None)
        streams = on_token is not None or should_stop is not None
        should_stop = self.runner.should_stop = should_stop or never_stop
        burst_steps = STREAM_STEPS if streams or self.sampling.stop else None
        # What a burst says cannot change the next one if nothing of it is looked at.
        self.runs_ahead = burst_steps is None
        try:
            self._run(burst_steps or self.runner.log_steps, should_stop)
        except StopRequested:
            self._mark_interrupted()
            self.runner.reset()
        except BaseException:
            self.runner.reset()
            raise
        self.progress.conclude()
        return [self._conclude(request) for request in self.requests]

    def _run(self, burst_steps: int, should_stop: Callable[[], bool]) -> None:
        steps = 1
        while self.scheduler.waiting or self.scheduler.active:
            if should_stop():
                return self._interrupt()
            if self.scheduler.admit():
                eos = self.tokenizer.eos_token_ids
                limits = self.scheduler.limits()
                samplings = [self.sampling if limit else None for limit in limits]
                self.table = make_request_table(samplings, limits, eos)
                self._prefill(should_stop)
            if should_stop() or not self.scheduler.active:
                continue
            overflow = self._decode(steps)
            steps = burst_steps
            if overflow and not self.replay.has_dropped:
                self._run_out()

    def _prefill(self, should_stop: Callable[[], bool]) -> None:
        """Feed the prompts of started requests, chunk by chunk until asked to stop.

        The tokens of a chunk that does not fit are lost, so that its last request must
        not be fed any further.
        """
        begin = time.perf_counter()
        while not should_stop() and (parts := self.scheduler.next_parts()):
            made = self.runner.has_made(PREFILL)
            with nullcontext() if made else self.progress.preparing("prefill"):
                state = self.runner.prefill(self.scheduler.chunk(parts))
            self.runner.note_made(PREFILL)
            names = "overflow", "roots", "not_finite"
            seen = jax.device_get({name: _looked_at(state)[name] for name in names})
            if seen["overflow"]:
                self._give_up(parts[-1].slot, seen["roots"])
                continue
            self.scheduler.note_fed(parts)
            self._start(parts, seen)
        self.progress.prefill_s += time.perf_counter() - begin

    def _start(self, parts: list[Part], seen: dict[str, np.ndarray]) -> None:
        """Note what a chunk has fed, and end the requests that it found not finite."""
        for slot in {part.slot for part in parts}:
            root, tree = seen["roots"][slot], self._tree(slot)
            if seen["not_finite"][slot]:
                self._fail(slot, "not-finite", "the hidden states of its prompt")
                self._drop(root)
            elif self.scheduler.is_fed(slot):
                self.replay.start(int(root), tree)
        read = sum(part.end - part.begin for part in parts)
        self.progress.count_prompt(read, len(self.scheduler.waiting))

    def _give_up(self, slot: int, roots: np.ndarray) -> None:
        """Free what a request took whose prompt does not fit.

        It waits until another request ends; if there is none it ends with a notice.
        """
        fed = self.scheduler.fed(slot)
        self.progress.count_prompt(-fed, len(self.scheduler.waiting) + 1)
        if len(self.scheduler.active) > 1:
            self.scheduler.put_back(slot)
        else:
            self._fail(slot, "capacity")
        if fed:
            self._drop(roots[slot])

    def _drop(self, root: int) -> None:
        """Free a tree on the device."""
        dropped = self.no_node.copy()
        dropped[root] = True
        self._begin(0, dropped)

    def _decode(self, steps: int) -> bool:
        """Run one burst of steps; return whether the next plan did not fit."""
        burst, self.ahead = self.ahead, None
        if burst is None:
            burst = self._begin(steps, self.replay.take_dropped())
        going_on = steps and not self.scheduler.waiting and not self.replay.has_dropped
        if self.runs_ahead and going_on:
            # The device goes on while the host replays what it did. Behind a burst
            # that ends the last request, or that did not fit, nothing is decoded.
            self.ahead = self._begin(self.runner.log_steps, self.no_node)
        seen = jax.device_get(burst.report)
        self.progress.note_decoded(burst.begin)
        seen["log"] = StepLog.unpack(seen["log"])
        seen["top_log"] = TopLog.unpack(seen["top_log"])
        events = self.replay.play(seen)
        for event in events:
            self.on_token(event)
        self.progress.count_burst(seen, len(events))
        vocab_size = self.runner.model.config.vocab_size
        self.notices = (
            plan_notices(seen, self.scheduler.active, self.capacity.nodes, vocab_size)
            | self.notices
        )
        self._end_done(seen)
        return bool(seen["overflow"])

    def _begin(self, steps: int, dropped: np.ndarray) -> Burst:
        """Start up to so many steps without waiting for them.

        Args:
            steps: most steps.
            dropped: [N] bool, nodes to drop first.
        """
        planner = self.strategy.planner
        if not self.runner.has_made(planner, self.table):
            with self.progress.preparing("decode"):
                # No step: compiling is not decoding time.
                self.runner.decode(self.table, self.no_node, 0, planner)
            self.runner.note_made(planner, self.table)
        begin = time.perf_counter()
        state = self.runner.decode(self.table, dropped, steps, planner)
        return Burst(_copy(_looked_at(state)), begin)

    def _end_done(self, seen: dict[str, Any]) -> None:
        """Close the trees that the device has ended, and give their rows back."""
        for slot in list(self.scheduler.active):
            tree, root = self._tree(slot), int(seen["roots"][slot])
            if root < self.capacity.nodes:
                if seen["not_finite"][slot]:
                    # The plan that would have ended it did not fit.
                    self.replay.drop(root)
                continue
            if seen["not_finite"][slot]:
                self._fail(slot, "not-finite", "the logits of a branch")
            else:
                self.scheduler.end(slot)
                tree.close("pruned")
            self.replay.forget(tree)

    def _interrupt(self) -> None:
        """End every request where it stands."""
        self._mark_interrupted()
        active = self.scheduler.active
        if not active:
            return
        if self.runner.has_made(self.strategy.planner, self.table):
            roots = np.asarray(self.runner.state.roots)[list(active)]
            dropped = self.no_node.copy()
            dropped[roots[roots < self.capacity.nodes]] = True
            self._begin(0, dropped)
        else:
            # Nobody who asks to stop wants to wait until the step is compiled.
            self.runner.reset()

    def _mark_interrupted(self) -> None:
        """Mark every request that has not ended; nothing is freed on the device."""
        waiting = self.scheduler.waiting
        for request in (*self.scheduler.active.values(), *waiting):
            self.trees[request.index].fail("interrupted")

    def _run_out(self) -> None:
        """End every active request where it stands; what is done stays."""
        for request in self.scheduler.active.values():
            self.notices[request.index] = self._ran_out()
        self._end_active("capacity")

    def _ran_out(self) -> str:
        tokens = self.progress.status.generated_tokens
        return (
            f"the KV pool of {self.capacity.pages} pages of "
            f"{self.capacity.page_size} tokens and {self.capacity.nodes} nodes ran "
            f"out after {tokens} tokens; what was generated is kept; raise the "
            "capacity, or lower n or max_new_tokens"
        )

    def _end_active(self, reason: FinishReason) -> None:
        for request in self.scheduler.active.values():
            self.trees[request.index].close(reason)
        if self.scheduler.active:
            self.ahead = None
            self.replay.drop_all()
            self._decode(0)

    def _fail(self, slot: int, reason: FinishReason, what: str = "") -> None:
        """End one request for a reason of its own, with a notice; not on the device.

        Args:
            slot: request slot.
            reason: why; "capacity" or "not-finite".
            what: the numbers that are not finite.
        """
        request, tree = self.scheduler.active[slot], self._tree(slot)
        tree.fail(reason)
        self.scheduler.end(slot)
        if reason == "capacity":
            self.notices[request.index] = self._ran_out()
            return
        tokens = sum(len(branch.logprobs) for branch in tree.branches.values())
        self.notices[request.index] = (
            f"{what} became NaN or infinite after {len(request.prompt)} prompt tokens "
            f"and {tokens} generated ones; what was generated is kept; check the "
            f"model's weights, or use a wider dtype than {self.runner.model.dtype}"
        )

    def _tree(self, slot: int) -> HostTree:
        return self.trees[self.scheduler.active[slot].index]

    def _conclude(self, request: Request) -> GenerationTree:
        """Return the result of a request with what the strategy adds."""
        tree = GenerationTree(
            request=request.index,
            prompt=request.text,
            nodes=self.trees[request.index].nodes(),
            stats=self.progress.status,
            prefill_s=self.progress.prefill_s,
            decode_s=self.progress.decode_s,
            notice=self.notices.get(request.index),
        )
        return self.strategy.conclude(tree)


def _looked_at(state: DecodeState) -> dict[str, jax.Array]:
    """Return what the host looks at after a burst."""
    return {
        "log": state.log,
        "top_log": state.top_log,
        "step": state.step,
        "roots": state.roots,
        "not_finite": state.not_finite,
        "row_node": state.rows.node,
        "num_free_pages": state.tree.num_free_pages,
        "overflow": state.tree.overflow,
    }


@jax.jit
def _copy(report: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return arrays that stay when the next burst takes over the state."""
    return jax.tree.map(jnp.copy, report)
