"""The trees that a replay decodes: topology and lengths; the tokens are the model's.

The workloads of the DeFT paper (arXiv 2404.00242), level trees as in the FastTree
benchmark, and random searches. `workloads/SOURCES.md` says where the files come from.
"""

import dataclasses
import json
import random
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from deft_jax.errors import DeftError
from deft_jax.tree.state import NO_NODE

WORKLOADS = Path(__file__).parents[1] / "workloads"
REASONING_TASKS = ("sorting", "docmerge")
"""Of the ten search trees each that the paper averages over."""


@dataclasses.dataclass(frozen=True)
class TreeTemplate:
    """A tree that grows and is pruned by fixed rules.

    A node of n tokens takes part in n decode steps: in each, one token is fed to the
    model. A child starts in the step after its parent's last, a child of the prompt in
    step 0. A leaf is pruned the moment it ends, with every ancestor left without a
    leaf. The last step is that of the last node.

    Attributes:
        name: name of the tree in reports.
        parents: [N], parent of each node, NO_NODE for the prompt, which is node 0;
            parents come before their children.
        tokens: [N], tokens of each node.
    """

    name: str
    parents: tuple[int, ...]
    tokens: tuple[int, ...]

    @classmethod
    def create(cls, name: str, parents: Iterable[int], tokens: Iterable[int]) -> Self:
        """Check the tree.

        Raises:
            DeftError: it has no node below the prompt, a node without tokens, or one
                whose parent does not come before it.
        """
        template = cls(name, tuple(parents), tuple(tokens))
        parents, tokens = template.parents, template.tokens
        if len(parents) != len(tokens) or len(parents) < 2:
            raise DeftError(
                f"{name}: expected the parents and tokens of at least 2 nodes, got "
                f"{len(parents)} parents and {len(tokens)} tokens"
            )
        for node, (parent, count) in enumerate(zip(parents, tokens, strict=True)):
            if not (0 <= parent < node if node else parent == NO_NODE):
                raise DeftError(
                    f"{name}: the parent of node {node} must come before it, and be "
                    f"{NO_NODE} for node 0 alone, got {parent}"
                )
            if count < 1:
                raise DeftError(
                    f"{name}: node {node} has {count} tokens, not 1 or more"
                )
        return template

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.tokens[0]

    @property
    def steps(self) -> int:
        """`S`, decode steps."""
        return int(self.end.max())

    @cached_property
    def end(self) -> np.ndarray:
        """[N] int, the step after each node's last; 0 for the prompt."""
        end = np.zeros(len(self.parents), int)
        for node, parent in enumerate(self.parents[1:], 1):
            end[node] = end[parent] + self.tokens[node]
        return end

    @property
    def start(self) -> np.ndarray:
        """[N] int, step of each node's first token; below 0 for the prompt's."""
        return self.end - np.array(self.tokens)

    @cached_property
    def freed(self) -> np.ndarray:
        """[N] int, step in whose plan a node is freed: the latest end below it."""
        freed = self.end.copy()
        for node in range(len(freed) - 1, 0, -1):
            parent = self.parents[node]
            freed[parent] = max(freed[parent], freed[node])
        return freed

    @cached_property
    def live_width(self) -> np.ndarray:
        """[S] int, nodes that grow in each step: its query tokens."""
        return self._running(np.ones(len(self.parents), int), self.end)

    @cached_property
    def live_nodes(self) -> np.ndarray:
        """[S] int, nodes held in each step, the prompt counted."""
        return 1 + self._running(np.ones(len(self.parents), int), self.freed)

    @cached_property
    def live_tokens(self) -> np.ndarray:
        """[S] int, cached tokens of the tree in each step, those of the step counted.

        What attention reads if it reads every token once.
        """
        freed = np.bincount(self.freed, self.tokens, self.steps + 1).astype(int)
        return self.prompt_tokens + np.cumsum(self.live_width - freed[:-1])

    @cached_property
    def path_tokens(self) -> np.ndarray:
        """[S] int, summed lengths of all growing paths in each step.

        What attention reads if it reads one sequence at a time. All paths are equally
        long: every step adds a token to each.
        """
        return self.live_width * (self.prompt_tokens + 1 + np.arange(self.steps))

    def _running(self, weight: np.ndarray, until: np.ndarray) -> np.ndarray:
        """Return [S], sums over steps of the weights of nodes that have started."""
        size = self.steps + 1
        begins = np.bincount(self.start[1:], weight[1:], size)
        ends = np.bincount(until[1:], weight[1:], size)
        return np.cumsum(begins - ends)[:-1].astype(int)

    def shortened(self, factor: int) -> "TreeTemplate":
        """Return the topology with a `factor` fewer tokens per node, at least one."""
        tokens = (max(1, count // factor) for count in self.tokens)
        return TreeTemplate.create(f"{self.name}/{factor}", self.parents, tokens)


def few_shot(prompt_tokens: int, width: int, steps: int) -> TreeTemplate:
    """Return a prompt that branches once into `width` leaves, grown for `steps`.

    The paper: a prompt of 4000 tokens, widths of 20, 30 and 50, 399 steps.
    """
    name = f"few_shot_{prompt_tokens}_{width}"
    tokens = [prompt_tokens] + [steps] * width
    return TreeTemplate.create(name, [NO_NODE] + [0] * width, tokens)


def reasoning(task: str) -> list[TreeTemplate]:
    """Return the ten search trees of a task of REASONING_TASKS, in file order.

    Raises:
        DeftError: there is no such task.
    """
    if task not in REASONING_TASKS:
        raise DeftError(f"task must be one of {REASONING_TASKS}, got {task!r}")
    trees = load_workload(f"reasoning_{task}")["trees"]
    return [
        TreeTemplate.create(f"{task}_{index}", tree["parents"], tree["tokens"])
        for index, tree in enumerate(trees)
    ]


def level_tree(nodes: Sequence[int], tokens_per_node: Sequence[int]) -> TreeTemplate:
    """Return a tree of levels: the first is the prompt, children spread evenly.

    Node `j` of a level has the parent `j * n // m`, where the level has `m` nodes and
    the one above `n`, as in the FastTree benchmark.

    Args:
        nodes: nodes of each level, 1 in the first.
        tokens_per_node: tokens of each node of a level.
    """
    name = f"levels_{','.join(map(str, nodes))}_{','.join(map(str, tokens_per_node))}"
    if len(nodes) != len(tokens_per_node) or nodes[0] != 1 or min(nodes) < 1:
        raise DeftError(f"{name}: expected as many lengths as levels, the first of 1")
    parents = [NO_NODE]
    for above, width in zip(nodes, nodes[1:], strict=False):
        first = len(parents) - above
        parents += [first + j * above // width for j in range(width)]
    return TreeTemplate.create(
        name, parents, np.repeat(tokens_per_node, nodes).tolist()
    )


def random_search(
    width: int,
    depth: int,
    branch_rate: float,
    prune_rate: float,
    *,
    tokens: tuple[int, int] = (16, 256),
    prompt_tokens: int = 1024,
    seed: int = 0,
) -> TreeTemplate:
    """Make a tree search of `depth` rounds; the same for the same arguments.

    In the first round the prompt branches into `width` leaves. In each later round
    every leaf that is still searched is given up with probability `prune_rate`, but
    never all of them: one drawn at random stays. Each of the others branches with
    probability `branch_rate` into 1 to `width` children, or else goes on in place. All
    lengths are uniform: of a new node, and of what a round adds to one that goes on. So
    one path at least has `depth` rounds, and a round multiplies the leaves by about
    `(1 - prune_rate) * (1 + branch_rate * (width - 1) / 2)`.

    Args:
        width: most children of a node, at least 1.
        depth: rounds, at least 1.
        branch_rate: from 0 to 1.
        prune_rate: from 0 to 1.
        tokens: least and most tokens that a leaf gets in a round.
        prompt_tokens: tokens of the prompt.
        seed: seed of the random numbers.
    """
    draw = random.Random(seed)
    parents, lengths = [NO_NODE], [prompt_tokens]

    def branch(leaf: int, children: int) -> list[int]:
        parents.extend([leaf] * children)
        lengths.extend(draw.randint(*tokens) for _ in range(children))
        return list(range(len(parents) - children, len(parents)))

    def search(leaf: int) -> list[int]:
        if draw.random() < branch_rate:
            return branch(leaf, draw.randint(1, width))
        lengths[leaf] += draw.randint(*tokens)
        return [leaf]

    leaves = branch(0, width)
    for _ in range(depth - 1):
        kept = [leaf for leaf in leaves if draw.random() >= prune_rate]
        kept = kept or [draw.choice(leaves)]
        leaves = [heir for leaf in kept for heir in search(leaf)]
    return TreeTemplate.create(f"random_{width}_{depth}_{seed}", parents, lengths)


def load_workload(name: str) -> dict[str, Any]:
    """Read a file of `workloads/`, by its name without `.json`."""
    return json.loads((WORKLOADS / f"{name}.json").read_text())
