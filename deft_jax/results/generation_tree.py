"""The tree that was generated for one prompt."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from deft_jax.errors import DeftError
from deft_jax.results.counters import Status, json_ready
from deft_jax.results.tree_node import TreeNode


@dataclass(frozen=True, kw_only=True)
class GenerationTree:
    """Everything generated for one prompt.

    Attributes:
        request: index of the prompt in the call.
        prompt: the prompt's text.
        nodes: parents before their children; the first is the root.
        stats: the final counters, over all requests of the call.
        prefill_s: seconds spent on the prompts of the call.
        decode_s: seconds spent on decoding.
        answer: answer that most branches gave, for a strategy that votes.
        agreement: votes for `answer` over the branches that gave any answer.
        votes: number of branches per answer.
        notice: one line about what ended the request or a branch early: a full KV
            pool, numbers of the model that are not finite, or a strategy's plan that
            could not be carried out. None if nothing did.
    """

    request: int
    prompt: str
    nodes: tuple[TreeNode, ...]
    stats: Status
    prefill_s: float = 0.0
    decode_s: float = 0.0
    answer: str | None = None
    agreement: float | None = None
    votes: Mapping[str, int] = field(default_factory=dict)
    notice: str | None = None

    @cached_property
    def _by_id(self) -> dict[int, TreeNode]:
        return {node.id: node for node in self.nodes}

    def leaves(self) -> tuple[TreeNode, ...]:
        """Return the nodes without children; a lone root is its own leaf."""
        parents = {node.parent for node in self.nodes}
        return tuple(node for node in self.nodes if node.id not in parents)

    def best(self) -> TreeNode:
        """Return the best leaf: by its score, or by its mean log-probability.

        A strategy that gives leaves a `score` so says which is best; leaves without
        one come last then. Otherwise it is the one with the highest mean
        log-probability. Where the strategy voted, only leaves that gave the winning
        answer count. Pruned branches count only if there is nothing else.
        """
        leaves = self.leaves()
        kept = [leaf for leaf in leaves if leaf.finish_reason != "pruned"]
        if self.answer is not None:
            kept = [leaf for leaf in kept if leaf.answer == self.answer] or kept
        candidates = kept or leaves
        if any(leaf.score is not None for leaf in candidates):
            return max(candidates, key=_score)
        return max(candidates, key=self.mean_logprob)

    def path(self, node: TreeNode) -> tuple[TreeNode, ...]:
        """Return the nodes from the root down to `node`, both included."""
        path = [node]
        while path[-1].parent is not None:
            path.append(self._by_id[path[-1].parent])
        return tuple(reversed(path))

    def path_text(self, node: TreeNode) -> str:
        """Return the text generated from the prompt, excluded, down to `node`."""
        return "".join(step.text for step in self.path(node)[1:])

    def mean_logprob(self, node: TreeNode) -> float:
        """Return the mean log-probability in nats over the generated path to `node`.

        A path without a generated token is `-inf`, so that it ranks last.
        """
        logprobs = [value for step in self.path(node) for value in step.logprobs]
        return math.fsum(logprobs) / len(logprobs) if logprobs else -math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return the tree as plain dicts and lists, ready for JSON.

        `branches` lists the leaves with the whole generated text of each; `best` is
        the id of a leaf. A number that is not finite becomes `None`.
        """
        return json_ready(
            {
                "request": self.request,
                "prompt": self.prompt,
                "best": self.best().id,
                "answer": self.answer,
                "agreement": self.agreement,
                "votes": dict(self.votes),
                "notice": self.notice,
                "prefill_s": self.prefill_s,
                "decode_s": self.decode_s,
                "branches": [self._branch(leaf) for leaf in self.leaves()],
                "nodes": [asdict(node) for node in self.nodes],
                "stats": self.stats.to_dict(),
            }
        )

    def _branch(self, leaf: TreeNode) -> dict[str, Any]:
        return {
            "leaf": leaf.id,
            "text": self.path_text(leaf),
            "mean_logprob": self.mean_logprob(leaf),
            "finish_reason": leaf.finish_reason,
            "answer": leaf.answer,
            "score": leaf.score,
        }

    def to_networkx(self) -> Any:
        """Return a `networkx.DiGraph` from the root to the leaves.

        Nodes carry the fields of `TreeNode` and `mean_logprob`; the graph carries
        `prompt`, `answer` and `best`.

        Raises:
            DeftError: networkx is not installed.
        """
        try:
            import networkx
        except ImportError:
            raise DeftError(
                "to_networkx needs the package networkx, which is not installed: "
                "pip install networkx"
            ) from None
        graph = networkx.DiGraph(
            prompt=self.prompt, answer=self.answer, best=self.best().id
        )
        for node in self.nodes:
            fields = {key: value for key, value in vars(node).items() if key != "id"}
            graph.add_node(node.id, **fields, mean_logprob=self.mean_logprob(node))
            if node.parent is not None:
                graph.add_edge(node.parent, node.id)
        return graph

    def render(self, width: int = 80, max_text: int | None = 240) -> str:
        """Return the tree as plain text with box-drawing lines.

        Args:
            width: columns of the text.
            max_text: columns of text shown per branch, whose middle is left out where
                it is longer; `None` shows all.
        """
        from deft_jax.results.render import (
            render_tree,  # It needs the types of this module.
        )

        return render_tree(self, width=width, max_text=max_text)

    def __str__(self) -> str:
        """Return the picture of `render`."""
        return self.render()


def _score(node: TreeNode) -> float:
    """Return a node's score, the least of all for one without."""
    return -math.inf if node.score is None else node.score
