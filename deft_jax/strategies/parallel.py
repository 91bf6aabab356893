"""Parallel sampling: `n` branches from one prompt, the best or the majority wins."""

import collections
import dataclasses
import re

from deft_jax.capacity import Capacity
from deft_jax.errors import DeftError
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TreeNode
from deft_jax.sampling.numbers import as_integer
from deft_jax.strategies.protocol import Plan, View

LARGEST = 2**31 - 1
"""Largest number of branches that rows of int32 could count."""

LAST_NUMBER = r"((?:(?<!\d)-)?\d+(?:,\d+)*(?:\.\d+)?)(?!.*\d)"
"""Default answer pattern of self-consistency: the last number of the text.

"so it is 1,250, I think" -> 1,250;  "3-5" -> 5;  "it fell to -5." -> -5
"""


@dataclasses.dataclass(frozen=True)
class ContinueAll:
    """Every branch takes the token that was sampled for it."""

    draft_depth: int = 1
    any_width: bool = True
    leaves_paths: bool = True

    def init(self, capacity: Capacity) -> tuple[()]:
        """Return no state of its own."""
        return ()

    def plan(self, state: tuple[()], view: View) -> tuple[tuple[()], Plan]:
        """Let fresh rows branch from the prompt, and the others go on in place."""
        return state, Plan.continue_all(view)


@dataclasses.dataclass(frozen=True)
class BestOfN:
    """Independent samples that share the prompt.

    The best of the tree is the one with the highest mean log-probability.

    Attributes:
        n: branches per prompt, at least 1.

    Raises:
        DeftError: n is no integer, or below 1.
    """

    n: int = 1

    def __post_init__(self):
        """Check the number of branches."""
        n = as_integer("n", self.n, -LARGEST, LARGEST)
        if n < 1:
            raise DeftError(f"n must be at least 1 branch, got {n}")
        object.__setattr__(self, "n", n)

    @property
    def rows(self) -> int:
        """One query row per branch."""
        return self.n

    @property
    def nodes(self) -> int:
        """The prompt and its branches."""
        return self.n + 1

    @property
    def planner(self) -> "ContinueAll":
        """A planner that is the same for every n, so that they share a compilation."""
        return ContinueAll()

    def conclude(self, tree: GenerationTree) -> GenerationTree:
        """Return the tree as it is."""
        return tree


@dataclasses.dataclass(frozen=True)
class SelfConsistency(BestOfN):
    """Majority vote over the answers of `n` samples (Wang et al., arXiv 2203.11171).

    Attributes:
        n: branches per prompt, at least 1.
        pattern: regular expression, searched in each branch's text over all lines; the
            answer is its first group, or the whole match if it has none. Answers are
            compared without surrounding space, commas between digits, and case.

    Raises:
        DeftError: n is no integer, or below 1, or the pattern is no regular expression.
    """

    n: int = 8
    pattern: str = LAST_NUMBER

    def __post_init__(self):
        """Check the number of branches and the pattern."""
        super().__post_init__()
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise DeftError(
                f"the answer pattern {self.pattern!r} is no regular expression: {error}"
            ) from None

    def conclude(self, tree: GenerationTree) -> GenerationTree:
        """Return the tree with each branch's answer, the majority and the agreement."""
        ends = {leaf.id for leaf in tree.leaves() if leaf.parent is not None}
        nodes = tuple(
            self._answered(tree, node) if node.id in ends else node
            for node in tree.nodes
        )
        answered = dataclasses.replace(tree, nodes=nodes)
        answers = [leaf.answer for leaf in answered.leaves() if leaf.answer is not None]
        if not answers:
            return answered
        votes: dict[str, int] = dict(collections.Counter(answers).most_common())
        answer, count = next(iter(votes.items()))
        return dataclasses.replace(
            answered, answer=answer, agreement=count / len(answers), votes=votes
        )

    def _answered(self, tree: GenerationTree, node: TreeNode) -> TreeNode:
        """Return a leaf with its answer, if its text has one."""
        match = re.search(self.pattern, tree.path_text(node), re.DOTALL)
        if match is None:
            return node
        found = match.group(1) if match.re.groups else match.group(0)
        return dataclasses.replace(node, answer=normalise_answer(found))


def normalise_answer(text: str | None) -> str | None:
    """Return the form in which answers are compared; None if nothing is left."""
    text = re.sub(r"(?<=\d),(?=\d)", "", text or "").strip().casefold()
    return text or None
