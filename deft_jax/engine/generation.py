"""One call of the engine: admits requests, feeds prompts, runs bursts of steps."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.accounting.sizes import AttentionSizes, kv_bytes
from deft_jax.capacity import bucket
from deft_jax.engine.host_tree import Record
from deft_jax.engine.log_replay import Replay
from deft_jax.engine.request import Request
from deft_jax.results.counters import Phase, Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import FinishReason, TokenEvent
from deft_jax.runtime.state import Chunk, DecodeState, StepLog
from deft_jax.sampling.params import Sampling, rows_for
from deft_jax.sampling.request_table import RequestTable
from deft_jax.strategies.protocol import Planner, Strategy

if TYPE_CHECKING:
    from deft_jax.engine.engine import Engine

MIN_BIASES = 16
"""Fewest entries of the logit bias table, so that most calls share a compilation."""

STREAM_STEPS = 4
"""Decode steps between two looks of the host while text is streamed."""


class Generation:
    """Runs the requests of one call on an engine whose state is empty."""

    def __init__(
        self,
        engine: "Engine",
        strategy: Strategy,
        sampling: Sampling,
        requests: list[Request],
    ):
        assert engine.capacity is not None
        self.engine, self.strategy, self.sampling = engine, strategy, sampling
        self.capacity = engine.capacity
        self.sizes = _attention_sizes(engine.model)
        self.requests = requests
        self.waiting = deque(requests)
        self.active: dict[int, Request] = {}
        self.records = [
            Record(r.index, r.prompt, r.text, engine.tokenizer, sampling.stop)
            for r in requests
        ]
        self.replay = Replay(self.capacity.nodes)
        self.free_rows = list(range(self.capacity.rows))
        self.rows_of: dict[int, list[int]] = {}
        self.notices: dict[int, str] = {}
        self.begin = time.perf_counter()
        self.prefill_s = self.decode_s = 0.0
        self.most_pages = 0
        self.decoded_until = 0.0
        self.ahead: _Started | None = None
        self.no_cut = np.zeros(self.capacity.nodes, bool)
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
        """Run to the end; see `Engine.generate`."""
        self.on_token = on_token or (lambda event: None)
        self.on_status = on_status or (lambda status: None)
        streams = on_token is not None or should_stop is not None
        should_stop = should_stop or (lambda: False)
        burst = STREAM_STEPS if streams or self.sampling.stop else None
        # What a burst says cannot change the next one if nothing of it is looked at.
        self.runs_ahead = burst is None
        try:
            self._run(burst, should_stop)
        except BaseException:
            self.engine.reset()
            raise
        self.status = dataclasses.replace(self.status, pages_used=self.most_pages)
        self._report("done", "")
        return [self._conclude(request) for request in self.requests]

    def _run(self, burst: int | None, should_stop: Callable[[], bool]) -> None:
        steps = 1
        while self.waiting or self.active:
            if should_stop():
                return self._end_all("interrupted")
            self._admit()
            overflow = self._decode(steps)
            steps = burst or self.engine.log_steps
            if overflow and not self.replay.has_cut:
                self._run_out()

    def _admit(self) -> None:
        """Start waiting requests while rows, nodes and pages last; feeds prompts."""
        started: list[int] = []
        while self.waiting and self._has_room(self.waiting[0]):
            request = self.waiting.popleft()
            slot = next(
                s for s in range(self.capacity.requests) if s not in self.active
            )
            self.active[slot] = request
            self.rows_of[slot] = [self.free_rows.pop(0) for _ in range(request.rows)]
            started.append(slot)
        if started:
            self.table = self._request_table()
            self._prefill(started)

    def _has_room(self, request: Request) -> bool:
        """True if a request surely fits beside the active ones, or is alone."""
        if not self.active:
            return True
        others = self.active.values()
        pages = sum(r.pages(self.capacity) for r in others)
        nodes = sum(r.nodes for r in others)
        return (
            len(self.active) < self.capacity.requests
            and request.rows <= len(self.free_rows)
            and nodes + request.nodes <= self.capacity.nodes
            and pages + request.pages(self.capacity) <= self.capacity.pages
        )

    def _request_table(self) -> RequestTable:
        slots = range(self.capacity.requests)
        active = [self.active.get(slot) for slot in slots]
        biases = bucket(max(MIN_BIASES, len(self.sampling.logit_bias)))
        rows = rows_for([self.sampling if r else None for r in active], biases)
        limits = [r.limit if r else 1 for r in active]
        eos = self.engine.tokenizer.eos_token_ids or (-1,)
        return RequestTable(
            sampling=jax.tree.map(jnp.asarray, rows),
            max_new_tokens=jnp.asarray(limits, jnp.int32),
            ignore_eos=jnp.full(len(active), self.sampling.ignore_eos),
            eos=jnp.asarray(eos, jnp.int32),
        )

    def _prefill(self, started: list[int]) -> None:
        self._announce("prefill", None)
        begin = time.perf_counter()
        for chunk, size in self._chunks(started):
            state = self.engine.prefill(chunk)
            state.hidden.block_until_ready()
            done = self.status.prompt_tokens_done + size
            self.status = dataclasses.replace(self.status, prompt_tokens_done=done)
            self._report("prefill", f"read {done} prompt tokens")
        self.prefill_s += time.perf_counter() - begin
        for slot, root in enumerate(np.asarray(self.engine.state.roots)):
            if slot in started:
                record = self.records[self.active[slot].index]
                self.replay.start(int(root), record)

    def _chunks(self, started: list[int]):
        """Chunks of the prompts of request slots, packed one behind the other."""
        tokens = [(slot, at) for slot in started for at in self._places(slot)]
        size = self.capacity.chunk
        for begin in range(0, len(tokens), size):
            part = tokens[begin : begin + size]
            yield self._chunk(part), len(part)

    def _places(self, slot: int) -> range:
        return range(len(self.active[slot].prompt))

    def _chunk(self, part: list[tuple[int, int]]) -> Chunk:
        capacity = self.capacity
        token = np.zeros(capacity.chunk, np.int32)
        request = np.full(capacity.chunk, capacity.requests, np.int32)
        starts = np.zeros(capacity.requests, bool)
        last = np.full(capacity.rows, -1, np.int32)
        number = np.zeros(capacity.rows, np.int32)
        for index, (slot, at) in enumerate(part):
            prompt = self.active[slot].prompt
            token[index], request[index] = prompt[at], slot
            starts[slot] |= at == 0
            if at == len(prompt) - 1:
                last[self.rows_of[slot]] = index
                number[self.rows_of[slot]] = np.arange(len(self.rows_of[slot]))
        arrays = (token, request, starts, last, number)
        return Chunk(*(jnp.asarray(array) for array in arrays))

    def _decode(self, steps: int) -> bool:
        """One burst of steps; return whether the next plan did not fit."""
        started, self.ahead = self.ahead, None
        if started is None:
            started = self._start(steps, self.replay.take_cut())
        if self.runs_ahead and steps and not self.waiting:
            # The device goes on while the host replays what it did. Behind a burst
            # that ends the last request, or that did not fit, nothing is decoded.
            self.ahead = self._start(self.engine.log_steps, self.no_cut)
        burst = self._read(started)
        events = self.replay.play(burst)
        for event in events:
            self.on_token(event)
        self._count(burst, len(events))
        self._free(burst["roots"])
        return bool(burst["overflow"])

    def _start(self, steps: int, cut: np.ndarray) -> "_Started":
        """Start up to so many steps and does not wait for them.

        Args:
            steps: at most.
            cut: [N] bool, nodes to drop first.
        """
        planner = self.strategy.planner
        if self._announce("decode", planner):
            # No step: compiling is not decoding time.
            self.engine.decode(self.table, jnp.asarray(self.no_cut), 0, planner)
        begin = time.perf_counter()
        state = self.engine.decode(self.table, jnp.asarray(cut), steps, planner)
        return _Started(_copy(_looked_at(state)), begin)

    def _read(self, started: "_Started") -> dict[str, Any]:
        """What the host looks at after a burst, in one transfer."""
        burst = jax.device_get(started.report)
        now = time.perf_counter()
        self.decode_s += now - max(started.begin, self.decoded_until)
        self.decoded_until = now
        return burst | {"log": StepLog.unpack(burst["log"])}

    def _count(self, burst: dict[str, Any], num_tokens: int) -> None:
        status = self.status
        tokens = status.generated_tokens + num_tokens
        reads = (int(x) for x in burst["kv_tokens"])
        counted = status.kv_tokens_read, status.kv_tokens_read_per_sequence
        tree, paths = (a + b for a, b in zip(counted, reads, strict=True))
        pages_used = self.capacity.pages - int(burst["num_free_pages"])
        self.most_pages = max(self.most_pages, pages_used)
        self.status = dataclasses.replace(
            status,
            generated_tokens=tokens,
            tokens_per_s=tokens / self.decode_s,
            live_branches=int((burst["row_node"] < self.capacity.nodes).sum()),
            pages_used=pages_used,
            kv_tokens_read=tree,
            kv_tokens_read_per_sequence=paths,
            kv_bytes_read=kv_bytes(tree, self.sizes),
            kv_bytes_read_per_sequence=kv_bytes(paths, self.sizes),
        )
        self._report("decode", "")

    def _free(self, roots: np.ndarray) -> None:
        """Give the rows of ended requests back."""
        for slot in [s for s in self.active if roots[s] >= self.capacity.nodes]:
            request = self.active.pop(slot)
            self.free_rows = sorted(self.free_rows + self.rows_of.pop(slot))
            self.records[request.index].close("pruned")

    def _run_out(self) -> None:
        """End every active request where it stands; what is done stays."""
        for request in self.active.values():
            self.notices[request.index] = (
                f"the KV pool of {self.capacity.pages} pages of "
                f"{self.capacity.page_size} tokens and {self.capacity.nodes} nodes ran "
                f"out after {self.status.generated_tokens} tokens; what was generated "
                "is kept; raise the capacity, or lower n or max_new_tokens"
            )
        self._end_active("capacity")

    def _end_all(self, reason: FinishReason) -> None:
        self.waiting.clear()
        self._end_active(reason)

    def _end_active(self, reason: FinishReason) -> None:
        for request in self.active.values():
            self.records[request.index].close(reason)
        if self.active:
            self.ahead = None
            self.replay.cut_all()
            self._decode(0)

    def _conclude(self, request: Request) -> GenerationTree:
        record = self.records[request.index]
        tree = GenerationTree(
            request=request.index,
            prompt=request.text,
            nodes=record.nodes(),
            stats=self.status,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
            notice=self.notices.get(request.index),
        )
        return self.strategy.conclude(tree)

    def _announce(self, step: str, planner: Planner | None) -> bool:
        """Says that the next call compiles, if it does."""
        first = self.engine.is_first(step, planner)
        if first:
            self._report("compile", f"compiling the {step} step; kept for next time")
        return first

    def _report(self, phase: Phase, message: str) -> None:
        elapsed = time.perf_counter() - self.begin
        self.status = dataclasses.replace(
            self.status, phase=phase, message=message, elapsed_s=elapsed
        )
        self.on_status(self.status)


class _Started(NamedTuple):
    """Decode steps that the device may still be at.

    Attributes:
        report: what the host looks at when they are done.
        begin: clock at their start, in seconds.
    """

    report: dict[str, Any]
    begin: float


def _attention_sizes(model: Any) -> AttentionSizes:
    config = model.config
    return AttentionSizes(
        num_q_heads=config.num_q_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        itemsize=jnp.dtype(model.dtype).itemsize,
        num_layers=config.num_layers,
    )


def _looked_at(state: DecodeState) -> dict[str, Any]:
    """What the host looks at after a burst."""
    return {
        "log": state.log,
        "step": state.step,
        "roots": state.roots,
        "row_node": state.rows.node,
        "kv_tokens": state.kv_tokens,
        "num_free_pages": state.tree.num_free_pages,
        "overflow": state.tree.overflow,
    }


@jax.jit
def _copy(report: dict[str, Any]) -> dict[str, Any]:
    """Arrays that stay when the next burst takes over the state that they are of."""
    return jax.tree.map(jnp.copy, report)
