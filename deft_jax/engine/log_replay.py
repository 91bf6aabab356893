"""From device nodes to result nodes: replays the steps that the device logged."""

from typing import Any

import numpy as np

from deft_jax.engine.host_tree import Branch, Record
from deft_jax.results.tree_node import ROOT, TokenEvent
from deft_jax.strategies.protocol import FINISH_REASONS

Place = tuple[Record, int]
"""A record and one of its node ids."""


class Replay:
    """Follows which result node each device node stands for.

    Device nodes are used again once they are freed; the log names them in the order of
    their use, so that a later branch simply takes the number over.
    """

    def __init__(self, num_nodes: int):
        self._num_nodes = num_nodes
        self._places: dict[int, Place] = {}
        self._drafts: list[tuple[int, Branch, int]] = []
        self._cut = np.zeros(num_nodes, bool)

    def start(self, root: int, record: Record) -> None:
        """Note the device node of a record's prompt."""
        self._take(root, (record, ROOT))

    @property
    def has_cut(self) -> bool:
        """True if `take_cut` has something to drop."""
        return bool(self._cut.any())

    def take_cut(self) -> np.ndarray:
        """[N] bool: device nodes that the host has ended since the last call."""
        cut, self._cut = self._cut, np.zeros(self._num_nodes, bool)
        return cut

    def cut_all(self) -> None:
        """End every device node."""
        self._cut[:] = True

    def play(self, burst: dict[str, Any]) -> list[TokenEvent]:
        """Apply the steps of a burst to the records; return the tokens' events."""
        events: list[TokenEvent] = []
        for step in range(int(burst["step"])):
            row = {k: v[step].tolist() for k, v in vars(burst["log"]).items()}
            self._judge_drafts(row["draft_logprob"])
            for tip in row["accept"]:
                events += self._accept(tip)
            events += self._grow(row)
        return events

    def _judge_drafts(self, logprobs: list[float]) -> None:
        """Note the log-probabilities of the tokens that the last step drafted."""
        for row, draft, at in self._drafts:
            draft.logprobs[at] = logprobs[row]
        self._drafts = []

    def _accept(self, tip: int) -> list[TokenEvent]:
        if tip < 0 or tip not in self._places:
            return []
        record, node = self._places[tip]
        return record.accept(node)

    def _grow(self, row: dict[str, list]) -> list[TokenEvent]:
        events: list[TokenEvent] = []
        fresh: dict[int, Place] = {}
        for index, source in enumerate(row["source"]):
            if source < 0:
                continue
            is_row = source >= self._num_nodes
            place = fresh[source - self._num_nodes] if is_row else self._places[source]
            fresh[index] = self._continue(place, row, index)
            events += self._add(fresh[index], row, index)
        for index, place in fresh.items():
            if row["node"][index] < self._num_nodes:
                self._take(row["node"][index], place)
        return events

    def _continue(self, place: Place, row: dict[str, list], index: int) -> Place:
        """Where a row's token goes; nothing grows from a branch that has ended."""
        record, node = place
        if row["branch"][index] and not record.has_ended(node):
            node = record.branch(node, row["draft"][index])
        return record, node

    def _add(self, place: Place, row: dict[str, list], index: int) -> list[TokenEvent]:
        """Add a row's token to its branch."""
        record, node = place
        if record.has_ended(node):
            return []
        reason = FINISH_REASONS.get(row["finish"][index])
        event = record.grow(node, row["token"][index], row["logprob"][index], reason)
        branch = record.branches[node]
        if branch.draft:
            self._drafts.append((index, branch, len(branch.tokens) - 1))
        return [event] if event else []

    def _take(self, device_node: int, place: Place) -> None:
        """Note what a device node stands for from now on.

        The device is to drop it if a stop string has ended its branch; a draft may
        still turn out wrong.
        """
        record, node = place
        self._places[device_node] = place
        self._cut[device_node] = (
            record.has_ended(node) and not record.branches[node].draft
        )
