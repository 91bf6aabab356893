"""The prefix cache: which nodes of the forest hold the tokens of which paths.

The forest itself is the cache. Its nodes that rest hold prompts, which live requests
grow from, and the paths of requests that have ended; a radix tree on the host names
them by their tokens. A path that ends in the middle of a node splits it.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

MIN_PART = 16
"""Fewest tokens that prompts must have in common for a node to be split.

All prompts may begin with the same few tokens, such as the one that begins a text.
Whole nodes are shared whatever they hold.
"""


@dataclasses.dataclass(eq=False)
class CachedNode:
    """A resting node of the forest.

    A split leaves this object to the lower part, so that whoever refers to the end of a
    path still does.

    Attributes:
        tokens: token ids of the node.
        parent: the node above; None for the top of the cache.
        node: device node; None until it is known.
        is_fed: true once all tokens have KV.
        users: live requests that grow from the node, or feed it.
        pins: pins on the path that ends here.
        used_at: when the path was last used; larger is later.
        children: the nodes below, those with one first token together.
    """

    tokens: list[int]
    parent: "CachedNode | None" = dataclasses.field(repr=False)
    node: int | None = None
    is_fed: bool = False
    users: int = 0
    pins: int = 0
    used_at: int = 0
    children: dict[int, list["CachedNode"]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def lineage(self) -> Iterator["CachedNode"]:
        """Yield the node and those above it, the top of the cache last."""
        node: CachedNode | None = self
        while node is not None:
            yield node
            node = node.parent

    def subtree(self) -> Iterator["CachedNode"]:
        """Yield the node and all below it, parents before their children."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            for siblings in node.children.values():
                stack += siblings

    @property
    def is_leaf(self) -> bool:
        """True if nothing that is cached is below."""
        return not self.children


@dataclasses.dataclass
class Match:
    """How much of a prompt is cached.

    Attributes:
        node: the last node of the path that is shared.
        tokens: tokens of the prompt that are on that path.
        part: tokens of `node` that are shared; all of them unless it is to be split.
    """

    node: CachedNode
    tokens: int
    part: int

    @property
    def splits(self) -> bool:
        """True if the path ends in the middle of its last node."""
        return self.part < len(self.node.tokens)


class PrefixCache:
    """A radix tree of the resting nodes, by their tokens.

    Attributes:
        top: stands above all prompts; no node of the forest.
    """

    def __init__(self) -> None:
        self.top = CachedNode([], None, is_fed=True)
        self._clock = itertools.count(1)

    def match(self, prompt: Sequence[int], most: int) -> Match:
        """Return the longest cached path that begins a prompt, and note its use.

        With "abcd" and below it "ef" and "xy" cached, the prompt "abcdexz" gives "ef"
        with 5 tokens of the prompt and a part of 1: if that is enough, "ef" is split.

        Args:
            prompt: token ids.
            most: most tokens that are wanted.
        """
        most = min(most, len(prompt))
        best = Match(self.top, 0, 0)
        stack = [best]
        while stack:
            above = stack.pop()
            done = above.tokens
            siblings = above.node.children.get(prompt[done], ()) if done < most else ()
            for child in siblings:
                shared = _common(child.tokens, prompt, done, most)
                match = Match(child, done + shared, shared)
                if not match.splits:
                    # Siblings may be alike: what is below one is not below another.
                    stack.append(match)
                elif match.tokens < MIN_PART:
                    continue
                if _rank(match) > _rank(best):
                    best = match
        now = next(self._clock)
        for node in best.node.lineage():
            node.used_at = now
        return best

    def add(self, parent: CachedNode, tokens: list[int]) -> CachedNode:
        """Add a node below another one."""
        child = CachedNode(tokens, parent, used_at=next(self._clock))
        parent.children.setdefault(tokens[0], []).append(child)
        return child

    def split(self, node: CachedNode, at: int) -> CachedNode:
        """Cut a node in two; return the new upper part, which has the first tokens.

        The lower part keeps the object, with its children, users and pins.
        """
        parent = node.parent
        assert parent is not None and 0 < at < len(node.tokens)
        upper = CachedNode(
            node.tokens[:at], parent, is_fed=node.is_fed, used_at=node.used_at
        )
        siblings = parent.children[node.tokens[0]]
        siblings[siblings.index(node)] = upper
        node.tokens, node.parent = node.tokens[at:], upper
        upper.children = {node.tokens[0]: [node]}
        return upper

    def remove(self, node: CachedNode) -> None:
        """Forget a node that has nothing below it."""
        assert node.is_leaf and node.parent is not None
        siblings = node.parent.children[node.tokens[0]]
        siblings.remove(node)
        if not siblings:
            del node.parent.children[node.tokens[0]]
        node.parent = None

    def nodes(self) -> Iterator[CachedNode]:
        """Return every node but the top, parents before their children."""
        return (node for node in self.top.subtree() if node is not self.top)

    def evictable(self, *, pinned: bool = False) -> list[CachedNode]:
        """Return the leaves that nobody uses, the longest unused first.

        Args:
            pinned: true to return the pinned ones, which are only evicted where a
                request would end otherwise; false for the others.
        """
        leaves = [
            node
            for node in self.nodes()
            if node.is_leaf and not node.users and node.is_fed
        ]
        leaves = [node for node in leaves if bool(node.pins) == pinned]
        return sorted(leaves, key=lambda node: node.used_at)


def _rank(match: Match) -> tuple[int, bool, bool]:
    """Return how good a match is: long, with KV, of whole nodes."""
    return match.tokens, match.node.is_fed, not match.splits


def _common(tokens: list[int], prompt: Sequence[int], begin: int, end: int) -> int:
    """Return how many first tokens of a node go on a prompt from `begin` on."""
    length = min(len(tokens), end - begin)
    part = prompt[begin : begin + length]
    if tokens[:length] == part:
        return length
    pairs = zip(tokens, part, strict=False)
    return next(i for i, (a, b) in enumerate(pairs) if a != b)
