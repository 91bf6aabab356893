"""Scores of nodes from the host, for which requests wait while others go on."""

import math
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from deft_jax.engine.beside import run_beside
from deft_jax.engine.live_request import LiveRequest
from deft_jax.engine.work import Work
from deft_jax.errors import DeftError
from deft_jax.results.generation_tree import GenerationTree


class Evaluations:
    """Asks strategies for scores, on threads of their own."""

    def __init__(self, work: Work):
        self.work = work

    def begin(self, live: LiveRequest) -> None:
        """Let a request wait for the scores that its strategy gives its tree."""
        live.is_waiting = True
        strategy: Any = live.request.strategy
        tree = live.call.tree_of(live.request, live.tree)

        def note(future: Future[Any]) -> None:
            self.work.order(lambda: self._end(live, tree, future))

        run_beside(lambda: strategy.evaluate(tree)).add_done_callback(note)

    def _end(
        self, live: LiveRequest, tree: GenerationTree, future: Future[Any]
    ) -> None:
        """Take the scores, or give the error to the request's call."""
        if self.work.forest.lives.get(live.slot) is not live:
            return  # It has ended, or was cancelled, in the meantime.
        try:
            scores = _checked(future.result(), tree)
        except Exception as error:
            self.work.fail_call(live.call, error)
            return
        live.is_waiting = False
        for node, score in scores.items():
            live.tree.branches[node].score = score
        device_nodes = self.work.forest.replay.device_nodes(live.tree)
        live.told = {device_nodes[n]: scores[n] for n in scores if n in device_nodes}


def _checked(scores: Any, tree: GenerationTree) -> dict[int, float]:
    """Return the scores that a strategy gave, by the ids of nodes.

    Raises:
        DeftError: they are no finite numbers of nodes that are there.
    """
    if not isinstance(scores, Mapping):
        raise DeftError(
            "the strategy's evaluate must return a mapping from ids of nodes to scores,"
            f" got {type(scores).__name__}"
        )
    known = {node.id for node in tree.nodes}
    checked = {}
    for node, score in scores.items():
        if node not in known:
            raise DeftError(
                f"the strategy's evaluate scores node {node!r:.40}; the tree has the "
                f"nodes {min(known)} to {max(known)}"
            )
        checked[node] = float(score)
        if not math.isfinite(checked[node]):
            raise DeftError(
                f"the strategy's evaluate gives node {node} the score {score}; it must "
                "be finite"
            )
    return checked
