"""Trees as an IO account sees them: the tokens of every node, step by step.

The shape of the tree is fixed within a `TreeSteps`; a run that branches and prunes is
several of them, one per stretch between two such events.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from deft_jax.errors import DeftError
from deft_jax.tree.state import NO_NODE


@dataclass(frozen=True, kw_only=True, eq=False)
class TreeSteps:
    """Steps of one forest between two changes of its shape; made by `create`.

    Attributes:
        parents: [N] int64, a parent before its children, NO_NODE for roots.
        queries: [N] int64, query tokens of each node in every step, its last ones.
        tokens: [S, N] int64, cached tokens of each node in each of `S` steps, those of
            the step's queries included: they are appended before they attend.
    """

    parents: np.ndarray
    queries: np.ndarray
    tokens: np.ndarray

    @classmethod
    def create(
        cls, parents: ArrayLike, tokens: ArrayLike, queries: ArrayLike | None = None
    ) -> "TreeSteps":
        """Check and complete a description.

        Args:
            parents: [N] integers, a parent before its children, NO_NODE for roots.
            tokens: [S, N] integers, tokens of each node; [N] for a single step.
            queries: [N] integers, by default one query per leaf, as in decoding.

        Raises:
            DeftError: shapes differ, a parent follows its child, a count is negative,
                or a node has more queries than tokens.
        """
        parent = np.asarray(parents, np.int64)
        held = np.atleast_2d(np.asarray(tokens, np.int64))
        if queries is None:
            queries = ~np.isin(np.arange(parent.size), parent)
        query = np.asarray(queries, np.int64)
        steps = cls(parents=parent, queries=query, tokens=held)
        steps._check()
        return steps

    def _check(self) -> None:
        size = self.parents.size
        shapes = self.parents.shape, self.queries.shape, self.tokens.shape[1:]
        if shapes != ((size,),) * 3:
            raise DeftError(
                f"expected parents [N], queries [N] and tokens [S, N], got {shapes[0]},"
                f" {shapes[1]} and {self.tokens.shape}; give every node one of each"
            )
        least = self.tokens.min(axis=0, initial=np.iinfo(np.int64).max)
        parent, query = self.parents, self.queries
        out_of_order = (parent < NO_NODE) | (parent >= np.arange(size))
        _check_nodes(
            out_of_order,
            f"a parent from {NO_NODE} to the node's own number - 1",
            parent,
            "number parents before their children",
        )
        _check_nodes(query < 0, "at least 0 queries", query, "use 0 for none")
        _check_nodes(least < 0, "at least 0 tokens", least, "use 0 for none")
        _check_nodes(
            least < query,
            "at least as many tokens as queries",
            [f"{t} for {q}" for t, q in zip(least, query, strict=True)],
            "count the step's own tokens too",
        )

    @property
    def num_steps(self) -> int:
        """`S`."""
        return len(self.tokens)

    @cached_property
    def num_queries(self) -> int:
        """Query tokens of one step."""
        return int(self.queries.sum())

    @cached_property
    def queries_below(self) -> np.ndarray:
        """[N] int64: queries that see a node, those of its whole subtree."""
        below = self.queries.copy()
        for node in range(below.size - 1, -1, -1):
            if self.parents[node] != NO_NODE:
                below[self.parents[node]] += below[node]
        return below

    @cached_property
    def first_ranks(self) -> np.ndarray:
        """[N] int64: the first of a node's queries in depth-first order."""
        first = np.zeros_like(self.queries)
        free = self.queries.copy()  # Ranks taken below each node so far.
        next_root = 0
        for node, parent in enumerate(self.parents):
            if parent == NO_NODE:
                first[node] = next_root
                next_root += self.queries_below[node]
            else:
                first[node] = first[parent] + free[parent]
                free[parent] += self.queries_below[node]
        return first

    def tile_tokens(self, tile_queries: int) -> np.ndarray:
        """Return [S, T] int64, the tokens that any query of each tile sees."""
        begin, end = self.first_ranks, self.first_ranks + self.queries_below
        tile = np.arange(-(-self.num_queries // tile_queries)) * tile_queries
        sees = (begin[:, None] < tile + tile_queries) & (end[:, None] > tile)
        # An empty range inside a tile would pass.
        sees &= self.queries_below[:, None] > 0
        return self.tokens @ sees.astype(np.int64)

    def along_path(self, values: np.ndarray) -> np.ndarray:
        """Return [S, N], sums of `values` [S, N] from the root down to each node."""
        sums = values.copy()
        for node, parent in enumerate(self.parents):
            if parent != NO_NODE:
                sums[:, node] += sums[:, parent]
        return sums


def _check_nodes(wrong: np.ndarray, expected: str, got, advice: str) -> None:
    """Raise for the first node that is wrong.

    Args:
        wrong: [N] bool, true for nodes that are wrong.
        expected: what every node should have.
        got: [N], what they have.
        advice: what the caller can do about it.
    """
    if wrong.any():
        node = int(np.argmax(wrong))
        raise DeftError(
            f"expected {expected}, got {got[node]} at node {node}; {advice}"
        )


def few_shot(prompt_tokens: int, num_leaves: int, num_steps: int) -> TreeSteps:
    """Return a prompt with leaves that hold `i` tokens in step `i`, counted from 1.

    The paper's few-shot prompting (arXiv 2404.00242, section 4).

    Raises:
        DeftError: a number is negative.
    """
    parents = [NO_NODE, *[0] * num_leaves]
    tokens = np.full((num_steps, 1 + num_leaves), prompt_tokens, np.int64)
    tokens[:, 1:] = np.arange(1, num_steps + 1)[:, None]
    return TreeSteps.create(parents, tokens, np.arange(1 + num_leaves) > 0)


def search_stretches(
    parents: Sequence[int], tokens: Sequence[int]
) -> Iterator[TreeSteps]:
    """Yield the steps of a recorded search, a stretch for every change of its tree.

    Roots are prompts and cost no step. Any other node of `n` tokens takes part in `n`
    steps, from its parent's end on. It is dropped once it has ended and no live leaf is
    below it (the paper's multi-step reasoning: templates replayed, section 4).

    Args:
        parents: [N], a parent before its children, NO_NODE for roots.
        tokens: [N], tokens that each node has in the end.

    Raises:
        DeftError: `TreeSteps.create` refuses the description.
    """
    whole = TreeSteps.create(parents, tokens, np.zeros(len(parents)))
    parent, size = whole.parents, whole.tokens[0]
    begin, end = _spans(parent, size)
    dropped = end.copy()
    for node in range(len(parent) - 1, -1, -1):
        if parent[node] != NO_NODE:
            dropped[parent[node]] = max(dropped[parent[node]], dropped[node])
    for start, stop in itertools.pairwise(np.unique([begin, end])):
        [live] = np.nonzero((begin <= start) & (dropped > start))
        name = np.full(len(parent) + 1, NO_NODE)  # Its last entry is for NO_NODE.
        name[live] = np.arange(len(live))
        step = np.arange(start, stop)[:, None]
        grown = np.minimum(step - begin[live] + 1, size[live])
        held = np.where(parent[live] == NO_NODE, size[live], grown)
        yield TreeSteps.create(name[parent[live]], held, end[live] > start)


def _spans(parent: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return [N] int64 twice, the first step of each node and one past its last."""
    begin, end = np.zeros_like(size), np.zeros_like(size)
    for node in np.flatnonzero(parent != NO_NODE):
        begin[node] = end[parent[node]]
        end[node] = begin[node] + size[node]
    return begin, end
