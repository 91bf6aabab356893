"""The tree as far as it has grown, kept from the events of the engine."""

from collections.abc import Mapping
from dataclasses import dataclass

from deft_jax.results.outline import Row, merge_chains, outline
from deft_jax.results.tree_node import ROOT, FinishReason, TokenEvent

_KEPT_TEXT = 2000


@dataclass
class Branch:
    """One node of a growing tree.

    Attributes:
        parent: id of the node above.
        text: the end of the node's text.
        tokens: tokens of the node.
        path_tokens: tokens generated from the prompt to here.
        path_logprob: sum of their log-probabilities.
        finish_reason: set when the branch has ended.
    """

    parent: int
    text: str = ""
    tokens: int = 0
    path_tokens: int = 0
    path_logprob: float = 0.0
    finish_reason: FinishReason | None = None

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability from the prompt to here, in nats."""
        return self.path_logprob / max(self.path_tokens, 1)


class GrowingTree:
    """The branches of one request."""

    def __init__(self):
        """Begin without branches."""
        self.branches: dict[int, Branch] = {}

    def add(self, event: TokenEvent) -> None:
        """Append the token of an event to its branch, which may be new."""
        branch = self._branch(event.node, event.parent)
        branch.text += event.text
        if len(branch.text) > 2 * _KEPT_TEXT:
            branch.text = branch.text[-_KEPT_TEXT:]
        branch.tokens += 1
        branch.path_tokens += 1
        branch.path_logprob += event.logprob
        branch.finish_reason = event.finish_reason or branch.finish_reason

    def _branch(self, node: int, parent: int | None) -> Branch:
        if node not in self.branches:
            parent = ROOT if parent is None else parent
            branch = Branch(parent)
            if parent != ROOT:
                above = self._branch(parent, ROOT)
                branch.path_tokens = above.path_tokens
                branch.path_logprob = above.path_logprob
            self.branches[node] = branch
        return self.branches[node]

    def is_finished(self) -> bool:
        """Return whether there are branches and every leaf has ended."""
        leaves = _leaves(self._chains())
        reasons = {self.branches[leaf[-1]].finish_reason for leaf in leaves}
        return bool(reasons) and None not in reasons

    def rows(self, max_rows: int, max_guide: int) -> tuple[list[Row], int]:
        """Return at most `max_rows` rows and the number of leaves left out.

        Leaves that still grow come first, in the order of their ids so that the
        picture is steady; then the ended ones with the highest mean log-probability.
        A leaf is shown with all that is above it.
        """
        chains = self._chains()
        ends = {chain[-1]: chain for chain in chains}
        shown: set[tuple[int, ...]] = set()
        hidden = 0
        for leaf in sorted(_leaves(chains), key=self._rank):
            path = {leaf}
            while (above := chains[leaf]) != ROOT:
                leaf = ends[above]
                path.add(leaf)
            if len(shown | path) <= max_rows:
                shown |= path
            else:
                hidden += 1
        kept = {chain: above for chain, above in chains.items() if chain in shown}
        return outline(kept, max_guide), hidden

    def _chains(self) -> dict[tuple[int, ...], int]:
        parents = {node: branch.parent for node, branch in self.branches.items()}
        return merge_chains({ROOT: None, **parents})

    def _rank(self, leaf: tuple[int, ...]) -> tuple[bool, float]:
        branch = self.branches[leaf[-1]]
        if branch.finish_reason is None:
            return False, leaf[-1]
        return True, -branch.mean_logprob


def _leaves(chains: Mapping[tuple[int, ...], int]) -> list[tuple[int, ...]]:
    inner = set(chains.values())
    return [chain for chain in chains if chain[-1] not in inner]
