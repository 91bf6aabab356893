"""The counters of a generation, while it runs and when it is done."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Phase = Literal["compile", "prefill", "decode", "done"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Counters of a generation, over all its requests.

    Attributes:
        phase: what the engine is doing.
        message: the same for a human reader, one line.
        elapsed_s: seconds since the call.
        prompt_tokens_done: prompt tokens whose keys and values are in the pool.
        prompt_tokens_cached: those of them that were found in the prefix cache.
        prompt_tokens_total: prompt tokens of all requests.
        generated_tokens: tokens sampled so far, on all branches.
        tokens_per_s: rate of decoding, all branches together.
        live_branches: branches still growing.
        pages_used: pages of the KV pool that hold tokens; once done, the most that
            held any between two bursts.
        pages_total: pages of the KV pool.
        kv_tokens_read: cached tokens read by the decode steps so far.
        kv_tokens_read_per_sequence: cached tokens that attention over one sequence
            at a time would have read for the same steps.
        kv_bytes_read: bytes of the keys and values of the former, in all layers.
        kv_bytes_read_per_sequence: bytes of the latter.
    """

    phase: Phase
    message: str = ""
    elapsed_s: float = 0.0
    prompt_tokens_done: int = 0
    prompt_tokens_cached: int = 0
    prompt_tokens_total: int = 0
    generated_tokens: int = 0
    tokens_per_s: float = 0.0
    live_branches: int = 0
    pages_used: int = 0
    pages_total: int = 0
    kv_tokens_read: int = 0
    kv_tokens_read_per_sequence: int = 0
    kv_bytes_read: int = 0
    kv_bytes_read_per_sequence: int = 0

    @property
    def kv_read_saved(self) -> float:
        """Share of the KV reads that the tree saved, from 0 to 1."""
        return share_saved(self.kv_tokens_read, self.kv_tokens_read_per_sequence)

    def to_dict(self) -> dict[str, Any]:
        """Return every counter under its own name, ready for JSON."""
        return json_ready(asdict(self) | {"kv_read_saved": self.kv_read_saved})


def share_saved(read_bytes: float, radix_bytes: float) -> float:
    """Return the part of KV reads that the tree saves, at most 1; 0 of no reads."""
    return 1.0 - read_bytes / radix_bytes if radix_bytes else 0.0


def json_ready(value: Any) -> Any:
    """Return `value` with lists for tuples and `None` for numbers JSON has not."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
