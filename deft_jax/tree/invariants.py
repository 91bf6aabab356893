"""What holds of every forest, as `Tree.check` verifies it on the host.

The functions take a `Tree` whose arrays are NumPy arrays and yield what is broken, one
line each, the cheapest to understand first: a later line may follow from an earlier.
"""

from collections.abc import Iterator

import numpy as np

NO_NODE = -1
"""Parent of a root; "no node" wherever node numbers are compared."""


def find_faults(tree) -> Iterator[str]:
    """Yield what is broken; nothing if the tree is one that operations give.

    Args:
        tree: a `Tree` on the host.
    """
    yield from _free_lists(tree)
    yield from _free_nodes(tree)
    yield from _links(tree)
    yield from _numbers(tree)
    yield from _storage(tree)
    yield from _pages(tree)
    yield from _tokens(tree)
    yield from _starts(tree)
    if not 0 <= tree.overflow < 8:
        yield f"overflow is {tree.overflow}, which has bits without a meaning"


def _free_lists(tree) -> Iterator[str]:
    """Verify that the stacks hold what is free, each once."""
    used_pages = tree.page_owner != tree.num_nodes
    for what, stack, height, used in [
        ("node", tree.free_nodes, tree.num_free_nodes, tree.live),
        ("page", tree.free_pages, tree.num_free_pages, used_pages),
    ]:
        if height != np.sum(~used):
            yield f"num_free_{what}s is {height}, but {np.sum(~used)} {what}s are free"
        on_stack = np.clip(stack[: max(height, 0)], -1, len(used))
        times = np.bincount(on_stack + 1, minlength=len(used) + 2)[1:-1]
        for index in np.flatnonzero(times != ~used):
            yield (
                f"{what} {index} is {'in use' if used[index] else 'free'}, but "
                f"{times[index]} times on the list of free {what}s"
            )


def _free_nodes(tree) -> Iterator[str]:
    """Verify that nodes which are not live hold nothing."""
    size = tree.num_nodes
    for name, value in [
        ("parent", NO_NODE),
        ("first", size),
        ("end", size),
        ("count", 0),
        ("trunk", size),
        ("storage", size),
    ]:
        array = getattr(tree, name)
        for node in np.flatnonzero(~tree.live & (array != value)):
            yield f"node {node} is free, but its {name} is {array[node]}, not {value}"


def _links(tree) -> Iterator[str]:
    """Verify that every parent is a live node, or none."""
    for node in np.flatnonzero(tree.live):
        parent = tree.parent[node]
        if parent != NO_NODE and not _is_live(tree, parent):
            yield f"node {node} has the parent {parent}, which is no live node"


def _numbers(tree) -> Iterator[str]:
    """Verify that depth-first numbers are 0, 1, ... and subtrees lie in one piece."""
    nodes = np.flatnonzero(tree.live)
    nodes = nodes[np.argsort(tree.first[nodes], kind="stable")]
    for number, node in enumerate(nodes):
        if tree.first[node] != number:
            yield f"node {node} has number {tree.first[node]}, but {number} is next"
    below = np.ones(tree.num_nodes, int)
    for node in nodes[::-1]:
        first, end, parent = tree.first[node], tree.end[node], tree.parent[node]
        if end - first != below[node]:
            yield (
                f"node {node} has numbers {first} to {end} for a subtree of "
                f"{below[node]} nodes"
            )
        if not _is_live(tree, parent):
            continue
        below[parent] += below[node]
        if not tree.first[parent] < first < end <= tree.end[parent]:
            yield (
                f"node {node} has numbers {first} to {end}, outside those of its "
                f"parent {parent}, {tree.first[parent]} to {tree.end[parent]}"
            )


def _storage(tree) -> Iterator[str]:
    """Verify that storage and trunk are the node itself, or what its parent has."""
    for node in np.flatnonzero(tree.live):
        parent = tree.parent[node]
        for name, what in [
            ("storage", "is stored in the pages of"),
            ("trunk", "has the trunk"),
        ]:
            array = getattr(tree, name)
            above = array[parent] if _is_live(tree, parent) else node
            if array[node] not in (node, above):
                yield (
                    f"node {node} {what} node {array[node]}; it must be itself or its "
                    f"parent's, {above}"
                )
        if tree.trunk[node] != node and tree.storage[node] == node:
            yield f"node {node} is a draft, but does not share its parent's pages"


def _pages(tree) -> Iterator[str]:
    """Verify that a page has an owner just if it holds tokens, all of its subtree."""
    size = tree.num_nodes
    for page in range(tree.num_pages):
        owner, filled = tree.page_owner[page], tree.slot_node[page] != size
        if owner == size:
            if filled.any():
                slot = np.argmax(filled)
                yield f"page {page} is free, but its slot {slot} holds a token"
            continue
        if not _is_live(tree, owner) or tree.storage[owner] != owner:
            yield f"page {page} has the owner {owner}, which owns no pages"
        if not filled.any():
            yield f"page {page} of node {owner} holds no token, but is not free"
        for slot in np.flatnonzero(filled):
            node = tree.slot_node[page, slot]
            if not _is_live(tree, node) or not _is_below(tree, node, owner):
                yield (
                    f"page {page} of node {owner} has a token of node {node} in slot "
                    f"{slot}, which is not below it"
                )


def _tokens(tree) -> Iterator[str]:
    """Verify that a node's slots are as many as it counts, one for each position."""
    for node in np.flatnonzero(tree.live):
        positions = np.sort(tree.slot_position[tree.slot_node == node])
        count, start = tree.count[node], tree.start[node]
        if len(positions) != count:
            yield f"node {node} counts {count} tokens, but {len(positions)} slots"
        elif not np.array_equal(positions, start + np.arange(count)):
            yield (
                f"node {node} starts at position {start}, but its {count} tokens have "
                f"the positions {positions.tolist()!s:.40}"
            )


def _starts(tree) -> Iterator[str]:
    """Verify that a node starts where its parent ends."""
    for node in np.flatnonzero(tree.live):
        parent, start = tree.parent[node], tree.start[node]
        if not _is_live(tree, parent):
            if start != 0:
                yield f"node {node} is a root, but starts at position {start}"
            continue
        stop = tree.start[parent] + tree.count[parent]
        if start != stop:
            yield (
                f"node {node} starts at position {start}, but its parent {parent} ends "
                f"at {stop}; a node must not grow once there are tokens below it"
            )


def _is_below(tree, node: int, above: int) -> bool:
    if not _is_live(tree, above):
        return False
    return bool(tree.first[above] <= tree.first[node] < tree.end[above])


def _is_live(tree, node: int) -> bool:
    return 0 <= node < tree.num_nodes and bool(tree.live[node])
