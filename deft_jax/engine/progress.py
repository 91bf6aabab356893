"""The counters of a call, and what its listener is told of them."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from deft_jax.accounting.sizes import AttentionSizes, kv_bytes
from deft_jax.capacity import Capacity
from deft_jax.engine.compilation_cache import watch_compilations
from deft_jax.results.counters import Phase, Status
from deft_jax.runtime.forward import Model
from deft_jax.runtime.state import StepLog


class Progress:
    """Counts what a call has done and reports it.

    Attributes:
        status: the counters.
        on_status: called with the counters when they change.
        prefill_s: seconds spent on prompts.
        decode_s: seconds in which decode steps ran.
    """

    def __init__(self, model: Model, capacity: Capacity, prompt_tokens: int):
        """Start the clock.

        Args:
            model: the network, whose KV is counted in bytes.
            capacity: what the engine holds at once.
            prompt_tokens: tokens of all prompts together.
        """
        self.on_status: Callable[[Status], None] = lambda status: None
        self.prefill_s = self.decode_s = 0.0
        self.status = Status(
            phase="prefill",
            pages_total=capacity.pages,
            prompt_tokens_total=prompt_tokens,
        )
        self._capacity = capacity
        self._sizes = AttentionSizes.of(model)
        self._begin = time.perf_counter()
        self._decoded_until = 0.0
        self._most_pages = 0

    def report(self, phase: Phase, message: str = "") -> None:
        """Tell the listener the counters."""
        elapsed = time.perf_counter() - self._begin
        self.status = dataclasses.replace(
            self.status, phase=phase, message=message, elapsed_s=elapsed
        )
        self.on_status(self.status)

    def conclude(self) -> None:
        """Report the counters of the whole call."""
        self.status = dataclasses.replace(self.status, pages_used=self._most_pages)
        self.report("done")

    @contextmanager
    def preparing(self, step: str) -> Iterator[None]:
        """Report that a program is made, and whether it was compiled for that.

        JAX says whether a program is read from a cache only when it is there.
        """
        self.report("compile", f"preparing the {step} step")
        with watch_compilations() as compilations:
            yield
        if compilations.seconds:
            kept = "; kept for next time" if compilations.kept else ""
            took = f"{compilations.seconds:.1f} s"
            self.report("compile", f"compiled the {step} step in {took}{kept}")

    def count_prompt(self, num_tokens: int, num_waiting: int) -> None:
        """Count prompt tokens that were read, or freed again if fewer than none."""
        done = self.status.prompt_tokens_done + num_tokens
        self.status = dataclasses.replace(self.status, prompt_tokens_done=done)
        wait = f"; {num_waiting} more prompts wait for their turn"
        more = wait if num_waiting else ""
        self.report("prefill", f"read {done} prompt tokens{more}")

    def note_decoded(self, begin: float) -> None:
        """Add the time of a burst that began then, but none that is counted already.

        Bursts overlap, as one is started before the host has looked at another.
        """
        now = time.perf_counter()
        self.decode_s += now - max(begin, self._decoded_until)
        self._decoded_until = now

    def count_burst(self, seen: dict[str, Any], num_tokens: int) -> None:
        """Add a burst to the counters and report them.

        Args:
            seen: what the host looks at after a burst, the log unpacked.
            num_tokens: tokens that branches have taken.
        """
        status = self.status
        tokens = status.generated_tokens + num_tokens
        tree, paths = count_reads(seen["log"], int(seen["step"]))
        tree += status.kv_tokens_read
        paths += status.kv_tokens_read_per_sequence
        pages_used = self._capacity.pages - int(seen["num_free_pages"])
        self._most_pages = max(self._most_pages, pages_used)
        self.status = dataclasses.replace(
            status,
            generated_tokens=tokens,
            tokens_per_s=tokens / self.decode_s,
            live_branches=int((seen["row_node"] < self._capacity.nodes).sum()),
            pages_used=pages_used,
            kv_tokens_read=tree,
            kv_tokens_read_per_sequence=paths,
            kv_bytes_read=kv_bytes(tree, self._sizes),
            kv_bytes_read_per_sequence=kv_bytes(paths, self._sizes),
        )
        self.report("decode")


def count_reads(log: StepLog, num_steps: int) -> tuple[int, int]:
    """Return the cached tokens that logged steps read, and along all paths alone.

    Each number of the log is an int32; the sums have no limit.
    """
    tree = log.tree_tokens[:num_steps, 0].sum(dtype=np.int64)
    paths = log.path_tokens[:num_steps].sum(dtype=np.int64)
    return int(tree), int(paths)
