"""The counters of a call, and what its listener is told of them."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from deft_jax.accounting.sizes import AttentionSizes, kv_bytes
from deft_jax.results.counters import Phase, Status
from deft_jax.runtime.forward import Model
from deft_jax.runtime.state import StepLog


class Progress:
    """Counts what a call has done and reports it.

    Attributes:
        status: the counters.
        on_status: called with the counters when they change.
        prefill_s: seconds in which tokens of its prompts were fed.
        decode_s: seconds in which decode steps of it ran.
    """

    def __init__(
        self,
        model: Model,
        prompt_tokens: int,
        on_status: Callable[[Status], None] | None,
    ):
        """Start the clock.

        Args:
            model: the network, whose KV is counted in bytes.
            prompt_tokens: tokens of all prompts together.
            on_status: called with the counters when they change.
        """
        self.on_status = on_status
        self.prefill_s = self.decode_s = 0.0
        self.status = Status(phase="prefill", prompt_tokens_total=prompt_tokens)
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
        if self.on_status is not None:
            self.on_status(self.status)

    def conclude(self) -> None:
        """Report the counters of the whole call."""
        self.status = dataclasses.replace(
            self.status, pages_used=self._most_pages, live_branches=0
        )
        self.report("done")

    def count_prompt(self, fed: int, cached: int, num_waiting: int) -> None:
        """Count prompt tokens.

        Args:
            fed: tokens that were fed; below 0 for some that are freed again.
            cached: tokens that were found in the prefix cache, likewise.
            num_waiting: prompts that have not started.
        """
        done = self.status.prompt_tokens_done + fed + cached
        self.status = dataclasses.replace(
            self.status,
            prompt_tokens_done=done,
            prompt_tokens_cached=self.status.prompt_tokens_cached + cached,
        )
        wait = f"; {num_waiting} more prompts wait for their turn"
        more = wait if num_waiting else ""
        self.report("prefill", f"read {done} prompt tokens{more}")

    def note_decoded(self, begin: float, now: float) -> None:
        """Add the time of a burst, but none that is counted already.

        Bursts overlap, as one is started before the host has looked at another.
        """
        self.decode_s += now - max(begin, self._decoded_until)
        self._decoded_until = now

    def count_burst(
        self, tokens: int, reads: tuple[int, int], branches: int, pages: tuple[int, int]
    ) -> None:
        """Add a burst to the counters and report them.

        Args:
            tokens: tokens that branches of the call have taken.
            reads: cached tokens that were read for it, and that attention over one
                sequence at a time would have read.
            branches: branches of the call that still grow.
            pages: pages that hold tokens, and all there are.
        """
        status = self.status
        generated = status.generated_tokens + tokens
        tree = status.kv_tokens_read + reads[0]
        paths = status.kv_tokens_read_per_sequence + reads[1]
        self._most_pages = max(self._most_pages, pages[0])
        self.status = dataclasses.replace(
            status,
            generated_tokens=generated,
            tokens_per_s=generated / self.decode_s if self.decode_s else 0.0,
            live_branches=branches,
            pages_used=pages[0],
            pages_total=pages[1],
            kv_tokens_read=tree,
            kv_tokens_read_per_sequence=paths,
            kv_bytes_read=kv_bytes(tree, self._sizes),
            kv_bytes_read_per_sequence=kv_bytes(paths, self._sizes),
        )
        self.report("decode")


def count_reads(
    log: StepLog, num_steps: int, slots: set[int] | None = None
) -> tuple[int, int]:
    """Return the cached tokens that logged steps read, and along all paths alone.

    What several requests read together counts for each by the tokens on its paths.

    Args:
        log: the unpacked log; its numbers are int32, the sums have no limit.
        num_steps: the steps in it.
        slots: request slots that are counted, None for all.
    """
    tree = int(log.tree_tokens[:num_steps, 0].sum(dtype=np.int64))
    paths = log.path_tokens[:num_steps]
    total = int(paths.sum(dtype=np.int64))
    if slots is None or not total:
        return tree, total
    mine = int(paths[np.isin(log.request[:num_steps], list(slots))].sum(dtype=np.int64))
    return tree * mine // total, mine
