"""A forest in plain Python: what the tree operations must do, told as simply as can be.

Nodes are kept in a dict, children in lists, and every operation walks. A token stays in
the page and slot it was put in. A page belongs to the node that it was opened for, and
one that holds no token is free.
"""

import dataclasses
from collections import Counter
from collections.abc import Container, Iterable

PageSlot = tuple[int, int]
"""Page, and slot within the page."""


@dataclasses.dataclass
class Token:
    """One token of a node.

    Attributes:
        token: its id.
        position: along its path, 0 for the first token of a root.
        slot: where its KV is.
    """

    token: int
    position: int
    slot: PageSlot


@dataclasses.dataclass
class Node:
    """One node of a forest.

    Attributes:
        parent: None for a root.
        draft: true if it is to be accepted or dropped later.
        storage: node into whose pages its tokens go.
        children: in the order they were made.
        tokens: in path order.
    """

    parent: int | None
    draft: bool = False
    storage: int = -1
    children: list[int] = dataclasses.field(default_factory=list)
    tokens: list[Token] = dataclasses.field(default_factory=list)


class OracleTree:
    """A forest whose node numbers and slots of tokens the caller chooses.

    Attributes:
        nodes: the live nodes by number.
        owners: node of each page in use.
    """

    def __init__(self):
        self.nodes: dict[int, Node] = {}
        self.owners: dict[int, int] = {}

    def branch(
        self, node: int, parent: int | None, draft: bool = False, shares: bool = False
    ) -> None:
        """Add an empty node; a root is never a draft, and shares no pages."""
        assert node not in self.nodes, f"node {node} is live"
        if parent is None:
            self.nodes[node] = Node(parent, storage=node)
            return
        home = self.nodes[parent].storage if draft or shares else node
        self.nodes[parent].children.append(node)
        self.nodes[node] = Node(parent, draft, home)

    def append(self, token_of: Iterable[tuple[int, int, PageSlot]]) -> list[int]:
        """Add a token to each node; return the positions.

        Args:
            token_of: node, token and slot of each row.
        """
        rows = [(node, Token(token, -1, slot)) for node, token, slot in token_of]
        for node, token in rows:
            self.nodes[node].tokens.append(token)
            home = self.nodes[node].storage
            assert self.owners.setdefault(token.slot[0], home) == home
        for node, token in rows:
            index = [each is token for each in self.nodes[node].tokens].index(True)
            token.position = self.start(node) + index
        return [token.position for _, token in rows]

    def may_append(self, nodes: Iterable[int]) -> bool:
        """Return false if there are tokens below a node that would grow."""
        below = (x for node in nodes for x in self.subtree(node)[1:])
        return not any(self.nodes[x].tokens for x in below)

    def start(self, node: int) -> int:
        """Return the position of the node's first token."""
        parent = self.nodes[node].parent
        return 0 if parent is None else len(self.path(parent))

    def prune(
        self,
        doomed: Iterable[int],
        keep: Container[int] = (),
        resting: Container[int] = (),
        roots: Container[int] = (),
    ) -> None:
        """Drop subtrees, and the ancestors they leave without a leaf.

        Args:
            doomed: roots of the subtrees.
            keep: ancestors that stay, with those above them.
            resting: nodes that stay even in the subtrees, with those above them.
            roots: below a doomed node, and not itself, the root of what stays.
        """
        dead: set[int] = set()
        for node in doomed:
            if node in self.nodes:
                dead |= set(self._own_subtree(node, roots))
        stays = {
            x
            for x, node in self.nodes.items()
            if (x in resting or (x not in dead and (x in keep or not node.children)))
        }
        gone = [x for x in self.nodes if not stays & set(self.subtree(x))]
        for node in gone:
            if node in self.nodes:
                self._drop(node)

    def _own_subtree(self, node: int, roots: Container[int]) -> list[int]:
        """Return the node and all below it, but for subtrees of roots below."""
        children = [x for x in self.nodes[node].children if x not in roots]
        below = [self._own_subtree(child, roots) for child in children]
        return [node, *(each for nodes in below for each in nodes)]

    def owner(self, node: int | None, roots: list[int]) -> int | None:
        """Return the nearest root above a node, or the node itself; None if none is."""
        while node is not None and node not in roots:
            node = self.nodes[node].parent
        return node

    def split(self, node: int, at: int, new: int) -> None:
        """Move the first tokens of a node to a new one between it and its parent.

        Args:
            node: node that keeps its number, its children and its last tokens.
            at: how many tokens to move.
            new: number of the new node.
        """
        assert new not in self.nodes, f"node {new} is live"
        whole = self.nodes[node]
        part = Node(whole.parent, whole.draft, whole.storage, [node])
        part.tokens, whole.tokens = whole.tokens[:at], whole.tokens[at:]
        if whole.parent is not None:
            siblings = self.nodes[whole.parent].children
            siblings[siblings.index(node)] = new
        whole.parent = new
        self.nodes[new] = part
        if whole.storage == node:
            self._rename_home(node, new)

    def collapse(self, mask: Iterable[int]) -> dict[int, int]:
        """Join nodes to their parents where they are the only child.

        Args:
            mask: nodes that may take over their parent.

        Returns:
            The node that took over each node that is gone.
        """
        heirs: dict[int, int] = {}
        for node in sorted(mask, key=lambda x: len(self._above(x))):
            parent = self.nodes[node].parent
            if parent is None or self.nodes[parent].children != [node]:
                continue
            if self.nodes[node].draft or self.nodes[parent].draft:
                continue
            self._take_over(node, parent)
            heirs[parent] = node
        return heirs

    def _take_over(self, node: int, parent: int) -> None:
        """Give a node the tokens and the place of its parent."""
        above = self.nodes[parent]
        self.nodes[node].tokens = above.tokens + self.nodes[node].tokens
        self.nodes[node].parent = above.parent
        if above.parent is not None:
            siblings = self.nodes[above.parent].children
            siblings[siblings.index(parent)] = node
        del self.nodes[parent]
        self._rename_home(parent, node)

    def _above(self, node: int | None) -> list[int]:
        """Return the node and all above it."""
        if node not in self.nodes:
            return []
        return [node, *self._above(self.nodes[node].parent)]

    def _rename_home(self, old: int, new: int) -> None:
        """Let the pages of a node be those of another, with all that share them."""
        for node in self.nodes.values():
            node.storage = new if node.storage == old else node.storage
        self.owners = {p: new if x == old else x for p, x in self.owners.items()}

    def accept(self, tip: int) -> None:
        """Move the tokens of the drafts on the path to the tip into their trunk.

        The trunk's other drafts are dropped with all below them, and so are children
        of nodes above the tip that are no drafts: they do not begin at an end any more.

        A tip that an earlier call dropped is ignored.
        """
        if tip not in self.nodes:
            return
        trunk, path = self.trunk(tip), self.draft_path(tip)
        rejected = [
            x for x in self.drafts() if self.trunk(x) == trunk and x not in path
        ]
        for node in [trunk, *path][:-1]:
            children = self.nodes[node].children
            rejected += [child for child in children if not self.nodes[child].draft]
        for node in rejected:
            if node in self.nodes:
                self._drop(node)
        for node in path:
            merged = self.nodes[node]
            self.nodes[trunk].tokens += merged.tokens
            for child in set(merged.children) - set(path):
                self.nodes[child].parent = trunk
                self.nodes[trunk].children.append(child)
        if path:
            self.nodes[trunk].children.remove(path[0])
        for node in path:
            del self.nodes[node]
        self._free_pages()

    def _drop(self, node: int) -> None:
        """Remove a node and all below it."""
        parent = self.nodes[node].parent
        if parent is not None:
            self.nodes[parent].children.remove(node)
        for gone in self.subtree(node):
            del self.nodes[gone]
        self._free_pages()

    def _free_pages(self) -> None:
        """Forget the pages that hold no token any more."""
        used = {token.slot[0] for _, token in self.tokens()}
        self.owners = {page: x for page, x in self.owners.items() if page in used}

    def subtree(self, node: int) -> list[int]:
        """Return the node and all below it, each before its children."""
        below = [self.subtree(child) for child in self.nodes[node].children]
        return [node, *(each for nodes in below for each in nodes)]

    def trunk(self, node: int) -> int:
        """Return the node itself, or for a draft its nearest ancestor that is none."""
        while self.nodes[node].draft:
            node = self._parent(node)
        return node

    def draft_path(self, tip: int) -> list[int]:
        """Return the drafts from below the trunk down to the tip."""
        path = []
        while self.nodes[tip].draft:
            path.insert(0, tip)
            tip = self._parent(tip)
        return path

    def drafts(self) -> list[int]:
        """Return all nodes that are drafts."""
        return [x for x, node in self.nodes.items() if node.draft]

    def _parent(self, node: int) -> int:
        parent = self.nodes[node].parent
        assert parent is not None, f"node {node} is a root"
        return parent

    def path(self, node: int) -> list[Token]:
        """Return the tokens from the root to the node's last."""
        parent = self.nodes[node].parent
        above = [] if parent is None else self.path(parent)
        return above + self.nodes[node].tokens

    def tokens(self) -> list[tuple[int, Token]]:
        """Return every token with its node."""
        return [(x, token) for x, node in self.nodes.items() for token in node.tokens]

    def pages_needed(self, rows: Iterable[int], page_size: int) -> int:
        """Return the free pages that appending one token to each row takes.

        Args:
            rows: nodes; one that gets several tokens is there as often.
            page_size: tokens per page.
        """
        pages = Counter(self.owners.values())
        used = Counter(self.owners[token.slot[0]] for _, token in self.tokens())
        needed = 0
        for home, new in Counter(self.nodes[x].storage for x in rows).items():
            holes = pages[home] * page_size - used[home]
            needed += -(-max(new - holes, 0) // page_size)
        return needed
