"""One call of the engine: admits requests, feeds prompts, runs bursts of steps."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.accounting.sizes import AttentionSizes, kv_bytes
from deft_jax.capacity import bucket
from deft_jax.engine.compilation_cache import watch_compilations
from deft_jax.engine.host_tree import HostTree, Tokenizer
from deft_jax.engine.log_replay import LogReplay
from deft_jax.engine.request import Request
from deft_jax.engine.runner import Runner
from deft_jax.engine.scheduler import Part, Scheduler
from deft_jax.results.counters import Phase, Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import FinishReason, TokenEvent
from deft_jax.runtime.forward import Model
from deft_jax.runtime.state import DecodeState, StepLog
from deft_jax.sampling.params import Sampling, rows_for
from deft_jax.sampling.request_table import RequestTable
from deft_jax.strategies.protocol import Strategy

MIN_BIASES = 16
"""Fewest entries of the logit bias table, so that most calls share a compilation."""

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
        self.sizes = _attention_sizes(runner.model)
        self.requests = requests
        self.scheduler = Scheduler(requests, self.capacity)
        self.trees = [
            HostTree(r.index, r.prompt, r.text, tokenizer, sampling.stop, r.limit)
            for r in requests
        ]
        self.replay = LogReplay(self.capacity.nodes, runner.model.config.vocab_size)
        self.notices: dict[int, str] = {}
        self.begin = time.perf_counter()
        self.prefill_s = self.decode_s = 0.0
        self.most_pages = 0
        self.decoded_until = 0.0
        self.ahead: Burst | None = None
        self.no_node = np.zeros(self.capacity.nodes, bool)
        self.status = Status(
            phase="prefill",
            pages_total=self.capacity.pages,
            prompt_tokens_total=sum(len(r.prompt) for r in requests),
        )

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
        self.on_status = on_status or (lambda status: None)
        streams = on_token is not None or should_stop is not None
        should_stop = should_stop or (lambda: False)
        burst_steps = STREAM_STEPS if streams or self.sampling.stop else None
        # What a burst says cannot change the next one if nothing of it is looked at.
        self.runs_ahead = burst_steps is None
        try:
            self._run(burst_steps or self.runner.log_steps, should_stop)
        except BaseException:
            self.runner.reset()
            raise
        self.status = dataclasses.replace(self.status, pages_used=self.most_pages)
        self._report("done", "")
        return [self._conclude(request) for request in self.requests]

    def _run(self, burst_steps: int, should_stop: Callable[[], bool]) -> None:
        steps = 1
        while self.scheduler.waiting or self.scheduler.active:
            if should_stop():
                self.scheduler.waiting.clear()
                return self._end_active("interrupted")
            if self.scheduler.admit():
                eos = self.tokenizer.eos_token_ids
                limits = self.scheduler.limits()
                self.table = make_request_table(self.sampling, limits, eos)
                self._prefill()
            if not self.scheduler.active:
                continue
            overflow = self._decode(steps)
            steps = burst_steps
            if overflow and not self.replay.has_dropped:
                self._run_out()

    def _prefill(self) -> None:
        """Feed the prompts of started requests, chunk by chunk.

        The tokens of a chunk that does not fit are lost, so that its last request must
        not be fed any further.
        """
        begin = time.perf_counter()
        while parts := self.scheduler.next_parts():
            first = self.runner.is_first("prefill")
            with self._preparing("prefill") if first else nullcontext():
                state = self.runner.prefill(self.scheduler.chunk(parts))
            names = "overflow", "roots", "not_finite"
            seen = jax.device_get({name: _looked_at(state)[name] for name in names})
            if seen["overflow"]:
                self._give_up(parts[-1].slot, seen["roots"])
                continue
            self.scheduler.note_fed(parts)
            self._start(parts, seen)
        self.prefill_s += time.perf_counter() - begin

    def _start(self, parts: list[Part], seen: dict[str, np.ndarray]) -> None:
        """Note what a chunk has fed, and end the requests that it found not finite."""
        read = sum(part.end - part.begin for part in parts)
        done = self.status.prompt_tokens_done + read
        self.status = dataclasses.replace(self.status, prompt_tokens_done=done)
        for slot in {part.slot for part in parts}:
            root, tree = seen["roots"][slot], self._tree(slot)
            if seen["not_finite"][slot]:
                self._fail(slot, "not-finite", "the hidden states of its prompt")
                self._drop(root)
            elif self.scheduler.is_fed(slot):
                self.replay.start(int(root), tree)
        waiting = len(self.scheduler.waiting)
        more = f"; {waiting} more prompts wait for their turn" if waiting else ""
        self._report("prefill", f"read {done} prompt tokens{more}")

    def _give_up(self, slot: int, roots: np.ndarray) -> None:
        """Free what a request took whose prompt does not fit.

        It waits until another request ends; if there is none it ends with a notice.
        """
        fed = self.scheduler.fed(slot)
        done = self.status.prompt_tokens_done - fed
        self.status = dataclasses.replace(self.status, prompt_tokens_done=done)
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
        now = time.perf_counter()
        self.decode_s += now - max(burst.begin, self.decoded_until)
        self.decoded_until = now
        seen["log"] = StepLog.unpack(seen["log"])
        events = self.replay.play(seen)
        for event in events:
            self.on_token(event)
        self._count(seen, len(events))
        self._end_done(seen)
        return bool(seen["overflow"])

    def _begin(self, steps: int, dropped: np.ndarray) -> Burst:
        """Start up to so many steps without waiting for them.

        Args:
            steps: most steps.
            dropped: [N] bool, nodes to drop first.
        """
        planner = self.strategy.planner
        if self.runner.is_first("decode", planner):
            with self._preparing("decode"):
                # No step: compiling is not decoding time.
                self.runner.decode(self.table, self.no_node, 0, planner)
        begin = time.perf_counter()
        state = self.runner.decode(self.table, dropped, steps, planner)
        return Burst(_copy(_looked_at(state)), begin)

    def _count(self, seen: dict[str, Any], num_tokens: int) -> None:
        """Add a burst to the counters and report them."""
        status = self.status
        tokens = status.generated_tokens + num_tokens
        tree, paths = count_reads(seen["log"], int(seen["step"]))
        tree += status.kv_tokens_read
        paths += status.kv_tokens_read_per_sequence
        pages_used = self.capacity.pages - int(seen["num_free_pages"])
        self.most_pages = max(self.most_pages, pages_used)
        self.status = dataclasses.replace(
            status,
            generated_tokens=tokens,
            tokens_per_s=tokens / self.decode_s,
            live_branches=int((seen["row_node"] < self.capacity.nodes).sum()),
            pages_used=pages_used,
            kv_tokens_read=tree,
            kv_tokens_read_per_sequence=paths,
            kv_bytes_read=kv_bytes(tree, self.sizes),
            kv_bytes_read_per_sequence=kv_bytes(paths, self.sizes),
        )
        self._report("decode", "")

    def _end_done(self, seen: dict[str, Any]) -> None:
        """Close the trees that the device has ended, and give their rows back."""
        roots = seen["roots"]
        for slot in [s for s in self.scheduler.active if roots[s] >= len(self.no_node)]:
            tree = self._tree(slot)
            if seen["not_finite"][slot]:
                self._fail(slot, "not-finite", "the logits of a branch")
            else:
                self.scheduler.end(slot)
                tree.close("pruned")
            self.replay.forget(tree)

    def _run_out(self) -> None:
        """End every active request where it stands; what is done stays."""
        for request in self.scheduler.active.values():
            self.notices[request.index] = self._ran_out()
        self._end_active("capacity")

    def _ran_out(self) -> str:
        return (
            f"the KV pool of {self.capacity.pages} pages of "
            f"{self.capacity.page_size} tokens and {self.capacity.nodes} nodes ran "
            f"out after {self.status.generated_tokens} tokens; what was generated "
            "is kept; raise the capacity, or lower n or max_new_tokens"
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
            stats=self.status,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            notice=self.notices.get(request.index),
        )
        return self.strategy.conclude(tree)

    @contextmanager
    def _preparing(self, step: str) -> Iterator[None]:
        """Report that a program is made, and whether it was compiled for that.

        JAX says whether a program is read from a cache only when it is there.
        """
        self._report("compile", f"preparing the {step} step")
        with watch_compilations() as compilations:
            yield
        if compilations.seconds:
            kept = "; kept for next time" if compilations.kept else ""
            took = f"{compilations.seconds:.1f} s"
            self._report("compile", f"compiled the {step} step in {took}{kept}")

    def _report(self, phase: Phase, message: str) -> None:
        """Tell the listener the counters."""
        elapsed = time.perf_counter() - self.begin
        self.status = dataclasses.replace(
            self.status, phase=phase, message=message, elapsed_s=elapsed
        )
        self.on_status(self.status)


def make_request_table(
    sampling: Sampling, limits: Sequence[int | None], eos_token_ids: Sequence[int]
) -> RequestTable:
    """Return what the device needs to know of each request slot.

    Args:
        sampling: how the tokens of all requests are chosen.
        limits: tokens that a branch of each request may have; None for free slots.
        eos_token_ids: tokens that end a text.
    """
    biases = bucket(max(MIN_BIASES, len(sampling.logit_bias)))
    rows = rows_for([sampling if limit else None for limit in limits], biases)
    return RequestTable(
        sampling=jax.tree.map(jnp.asarray, rows),
        max_new_tokens=jnp.asarray([limit or 1 for limit in limits], jnp.int32),
        ignore_eos=jnp.full(len(limits), sampling.ignore_eos),
        eos=jnp.asarray(eos_token_ids or (-1,), jnp.int32),
    )


def count_reads(log: StepLog, num_steps: int) -> tuple[int, int]:
    """Return the cached tokens that logged steps read, and along all paths alone.

    Each number of the log is an int32; the sums have no limit.
    """
    tree = log.tree_tokens[:num_steps, 0].sum(dtype=np.int64)
    paths = log.path_tokens[:num_steps].sum(dtype=np.int64)
    return int(tree), int(paths)


def _attention_sizes(model: Model) -> AttentionSizes:
    config = model.config
    return AttentionSizes(
        num_q_heads=config.num_q_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        itemsize=jnp.dtype(model.dtype).itemsize,
        num_layers=config.num_layers,
    )


def _looked_at(state: DecodeState) -> dict[str, jax.Array]:
    """Return what the host looks at after a burst."""
    return {
        "log": state.log,
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
