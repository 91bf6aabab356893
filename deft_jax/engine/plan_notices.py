"""What the host says of plans that the device could not carry out."""

from collections.abc import Mapping
from typing import Any

from deft_jax.engine.request import Request
from deft_jax.tree.state import NO_NODE


def plan_notices(
    burst: dict[str, Any], active: Mapping[int, Request], num_nodes: int, vocab: int
) -> dict[int, str]:
    """Return a notice on the first row that was left out, for each request with one.

    A row that names no active request is told to all of them.

    Args:
        burst: `log`, an unpacked `StepLog`, and `step`, the steps in it.
        active: the requests that decode, by slot.
        num_nodes: `N`.
        vocab: `V`.

    Returns:
        One line each, by the index of the request in the call.
    """
    log, notices = burst["log"], {}
    left_out = log.left_out[: int(burst["step"])]
    for step, row in zip(*(left_out != NO_NODE).nonzero(), strict=True):
        wrong = _wrong(
            int(left_out[step, row]), int(log.token[step, row]), num_nodes, vocab
        )
        slot = int(log.request[step, row])
        for request in [active[slot]] if slot in active else active.values():
            notices.setdefault(
                request.index,
                f"the strategy's plan lets row {row} {wrong}; the row was left out, "
                "and a branch that nothing continues ends as pruned; use "
                "checked(strategy) to find the plan",
            )
    return notices


def _wrong(source: int, token: int, num_nodes: int, vocab: int) -> str:
    """Say what a row asked for, and what it may ask for."""
    if not 0 <= token < vocab:
        return f"take token {token}; the vocabulary has 0 to {vocab - 1}"
    if source >= num_nodes:
        return (
            f"continue row {source - num_nodes} of the plan, which is no earlier row "
            "that takes part"
        )
    return f"continue node {source}, which is not live"
