"""Telling callers that a program is made before it can run."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

from deft_jax.engine.call import Call
from deft_jax.engine.compilation_cache import watch_compilations
from deft_jax.engine.work import Work
from deft_jax.sampling.request_table import RequestTable


@contextmanager
def preparing(
    work: Work,
    what: str,
    step: Hashable,
    calls: Sequence[Call],
    table: RequestTable | None = None,
) -> Iterator[None]:
    """Tell callers that a program is made, and whether it was compiled for that.

    JAX says whether a program is read from a cache only when it is there.

    Args:
        work: knows whether the program is there already; then nothing is told.
        what: the step, in a word.
        step: what names the program.
        calls: who is told.
        table: the requests, for a decode step.
    """
    if work.runner.has_made(step, table):
        yield
        return

    def tell(message: str) -> None:
        for call in calls:
            with work.listening(call):
                call.progress.report("compile", message)

    tell(f"preparing the {what} step")
    with watch_compilations() as compilations:
        yield
    if compilations.seconds:
        kept = "; kept for next time" if compilations.kept else ""
        tell(f"compiled the {what} step in {compilations.seconds:.1f} s{kept}")
