"""What all replays ask of an engine: one request at a time, and room for it."""

from deft_jax.capacity import Capacity, bucket, chunk_for
from deft_jax.errors import CapacityError


def replay_capacity(
    prompt_tokens: int, rows: int, nodes: int, pages: int, page_size: int
) -> Capacity:
    """Return the capacity for one request, rounded so that replays share programs.

    Args:
        prompt_tokens: length of the longest prompt.
        rows: most query tokens of a step.
        nodes: most nodes at once.
        pages: most pages at once.
        page_size: tokens per page.
    """
    return Capacity(
        requests=1,
        rows=bucket(rows),
        nodes=bucket(nodes),
        pages=bucket(pages),
        page_size=page_size,
        chunk=chunk_for(prompt_tokens),
    )


def check_one_request(capacity: Capacity) -> None:
    """Check that an engine decodes one request at a time.

    Raises:
        CapacityError: the engine decodes several.
    """
    if capacity.requests != 1:
        raise CapacityError(
            f"a replay decodes 1 request at a time, the engine {capacity.requests}"
        )
