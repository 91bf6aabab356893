"""The host reads the device's log: which node of a result each token belongs to."""

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from deft_jax.engine.host_tree import Branch, HostTree
from deft_jax.errors import DeftError
from deft_jax.results.tree_node import ROOT, TokenEvent
from deft_jax.runtime.state import StepLog
from deft_jax.runtime.top_log import TopLog
from deft_jax.strategies.protocol import FINISH_REASONS


class Address(NamedTuple):
    """A node of a result.

    Attributes:
        tree: the request's tree.
        node: id of the node in it.
    """

    tree: HostTree
    node: int


class Told(NamedTuple):
    """A token that a branch has taken.

    Attributes:
        tree: the request's tree.
        event: what listeners are told.
    """

    tree: HostTree
    event: TokenEvent


class LogReplay:
    """Follows which result node each device node stands for.

    Device nodes are used again once they are freed; the log names them in the order of
    their use, so that a later branch simply takes the number over. Three steps of two
    rows, with the prompt in device node 4 (result node 0):

        source  4 4   branch 1 1   node  7 2      7 is result node 1, 2 is 2
        source  7 2   branch 0 0   node  7 10     row 1 ended: N = 10, not fed
        source  7 7   branch 1 1   node  2 3      2 is result node 3 now, 3 is 4
    """

    def __init__(self, num_nodes: int, vocab_size: int):
        self._num_nodes = num_nodes
        self._vocab_size = vocab_size
        self._addresses: dict[int, Address] = {}
        self._drafts: dict[Hashable, list[tuple[int, Branch, int]]] = {}
        self._chained: dict[Hashable, list[tuple[Branch, int, Address]]] = {}
        self._dropped = np.zeros(num_nodes, bool)

    def start(self, root: int, tree: HostTree) -> None:
        """Note the device node of a prompt."""
        self._note(root, Address(tree, ROOT))

    def forget(self, tree: HostTree) -> None:
        """Forget the device nodes of a request that has ended."""
        self._addresses = {
            node: address
            for node, address in self._addresses.items()
            if address.tree is not tree
        }

    def tree_of(self, device_node: int) -> HostTree | None:
        """Return the tree that a device node belongs to, None if that is unknown."""
        address = self._addresses.get(device_node)
        return None if address is None else address.tree

    def device_nodes(self, tree: HostTree) -> dict[int, int]:
        """Return the device nodes of a tree by the ids of the result's nodes."""
        return {
            address.node: node
            for node, address in self._addresses.items()
            if address.tree is tree
        }

    @property
    def has_dropped(self) -> bool:
        """True if `take_dropped` has something to drop."""
        return bool(self._dropped.any())

    def take_dropped(self) -> np.ndarray:
        """Return [N] bool, device nodes that the host has ended since the last call."""
        dropped, self._dropped = self._dropped, np.zeros(self._num_nodes, bool)
        return dropped

    def play(
        self,
        log: StepLog,
        steps: int,
        tops: TopLog | None = None,
        group: Hashable = None,
    ) -> list[Told]:
        """Apply the steps of a burst to the trees; return the tokens' events.

        Args:
            log: the unpacked log.
            steps: the steps in it.
            tops: the most likely tokens, if they were written down.
            group: names the requests that decode together; what a step says of the
                rows of the step before is of the same ones.

        Raises:
            DeftError: the strategy continued a node that is not there, or gave a token
                that the vocabulary has not.
        """
        events: list[Told] = []
        drafts = self._drafts.setdefault(group, [])
        fields = {name: values[:steps].tolist() for name, values in vars(log).items()}
        for step in range(steps):
            row = {name: values[step] for name, values in fields.items()}
            if tops is not None:
                self._note_tops(tops, step, group)
            for index, draft, at in drafts:
                draft.logprobs[at] = row["draft_logprob"][index]
            drafts.clear()
            for tip in row["accept"]:
                events += self._accept(tip)
            events += self._grow(row, group)
        return events

    def _note_tops(self, log: TopLog, step: int, group: Hashable) -> None:
        """Note what is most likely behind each row, before the step changes the tree.

        Only now that is known of tokens that stand for the place behind a row of the
        step before, as drafts do.
        """
        for index, node in enumerate(log.node[step].tolist()):
            if (address := self._addresses.get(node)) is not None:
                tops = log.token[step, index], log.logprob[step, index]
                address.tree.note_tops(address.node, *tops)
        for branch, at, (tree, above) in self._chained.pop(group, []):
            if above in tree.branches:
                branch.tops[at] = tree.branches[above].next_tops

    def _accept(self, tip: int) -> list[Told]:
        address = self._addresses.get(tip)
        if address is None or address.node not in address.tree.branches:
            return []
        tree = address.tree
        return [Told(tree, event) for event in tree.accept(address.node)]

    def _grow(self, row: dict[str, list], group: Hashable) -> list[Told]:
        """Add the tokens of a step, row by row."""
        events: list[Told] = []
        fresh: dict[int, Address] = {}
        for index, source in enumerate(row["source"]):
            if source < 0:
                continue
            tree, node = self._find(source, fresh, index)
            # Nothing grows from a branch that has ended; the device may not know yet.
            if row["branch"][index] and not tree.has_ended(node):
                node = tree.branch(node, row["draft"][index])
            # None for a device node, whose likely tokens are known.
            above = fresh.get(source - self._num_nodes)
            fresh[index] = Address(tree, node)
            events += self._add(fresh[index], row, index, above, group)
        for index, address in fresh.items():
            if 0 <= row["node"][index] < self._num_nodes:
                self._note(row["node"][index], address)
        return events

    def _find(self, source: int, fresh: dict[int, Address], index: int) -> Address:
        """Return what a row continues: a device node, or N + j for row j of the step.

        Args:
            source: node or row that is continued.
            fresh: what the earlier rows of the step were added to, by row.
            index: the row.
        """
        is_row = source >= self._num_nodes
        found = fresh if is_row else self._addresses
        address = found.get(source - self._num_nodes if is_row else source)
        if address is None or address.node not in address.tree.branches:
            raise DeftError(
                f"the strategy's plan lets row {index} continue {source} of "
                f"{self._num_nodes} nodes, which holds no token of a running request; "
                "give a live node, N + j for an earlier row j, or NO_NODE as `source`"
            )
        return address

    def _add(
        self,
        address: Address,
        row: dict[str, list],
        index: int,
        above: Address | None,
        group: Hashable,
    ) -> list[Told]:
        """Add a row's token to its branch; return its events, one or none.

        Args:
            address: the branch.
            row: what the log says of the rows of the step, by field.
            index: the row.
            above: what the row continues, if that is a row of the same step.
            group: names the requests that decode together.
        """
        tree, node = address
        if tree.has_ended(node):
            return []
        token = row["token"][index]
        if not 0 <= token < self._vocab_size:
            raise DeftError(
                f"the strategy's plan gives row {index} token {token}; the vocabulary "
                f"has 0 to {self._vocab_size - 1}"
            )
        reason = FINISH_REASONS.get(row["finish"][index])
        event = tree.grow(node, token, row["logprob"][index], reason)
        branch = tree.branches[node]
        if branch.draft:
            self._drafts[group].append((index, branch, len(branch.tokens) - 1))
        if above is not None:
            chained = self._chained.setdefault(group, [])
            chained.append((branch, len(branch.tokens) - 1, above))
        return [Told(tree, event)] if event else []

    def _note(self, device_node: int, address: Address) -> None:
        """Note what a device node stands for from now on.

        The device is to drop it if the host has ended its branch, by a stop string for
        one; a draft may still turn out wrong.
        """
        tree, node = address
        self._addresses[device_node] = address
        self._dropped[device_node] = (
            tree.has_ended(node) and not tree.branches[node].draft
        )
