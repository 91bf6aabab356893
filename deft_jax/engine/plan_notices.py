"""What the host says of plans that the device could not carry out."""

from collections.abc import Iterator, Mapping

from deft_jax.engine.live_request import LiveRequest
from deft_jax.runtime.state import StepLog
from deft_jax.tree.state import NO_NODE


def plan_notices(
    log: StepLog, steps: int, lives: Mapping[int, LiveRequest], rooms: tuple[int, int]
) -> Iterator[tuple[LiveRequest, str]]:
    """Yield a notice, one line, on each row that was left out, with its request.

    A row that names no running request is told to all of them.

    Args:
        log: the unpacked log.
        steps: the steps in it.
        lives: the requests that decode, by slot.
        rooms: `N` and `V`.
    """
    left_out = log.left_out[:steps]
    for step, row in zip(*(left_out != NO_NODE).nonzero(), strict=True):
        wrong = _wrong(int(left_out[step, row]), int(log.token[step, row]), *rooms)
        slot = int(log.request[step, row])
        for live in [lives[slot]] if slot in lives else lives.values():
            yield (
                live,
                (
                    f"the strategy's plan lets row {row} {wrong}; the row was left "
                    "out, and a branch that nothing continues ends as pruned; use "
                    "checked(strategy) to find the plan"
                ),
            )


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
