"""Random forests, and the path of every query worked out by walking parents.

The arrays are filled in plain Python, not by the operations of the library, so that
they also hold layouts that no short sequence of operations gives.
"""

import dataclasses
import functools
from collections import defaultdict

import jax.numpy as jnp
import numpy as np

from deft_jax.tree.appending import Slots
from deft_jax.tree.state import NO_NODE, Tree
from tests.support.forest_plans import Limits, Plan, Sketch, sketch


@dataclasses.dataclass(frozen=True)
class Forest:
    """A forest after its query tokens were appended.

    Attributes:
        tree: its state.
        slots: where the query tokens are; rows that are idle or of pruned nodes see
            nothing.
        paths: by row, the (page, slot) of each token the query sees; the index of a
            token is its position along the path.
    """

    tree: Tree
    slots: Slots
    paths: list[list[tuple[int, int]]]

    @property
    def seen(self) -> np.ndarray:
        """[M, P] bool, true for tokens that some query sees."""
        seen = np.zeros(self.tree.slot_node.shape, bool)
        for at in {at for path in self.paths for at in path}:
            seen[at] = True
        return seen


def grow(plan: Plan) -> Forest:
    """Return the forest of a plan, with random node numbers and order of siblings."""
    rng = np.random.default_rng(plan.seed)
    made = sketch(plan, rng)
    names = rng.permutation(plan.limits.nodes)[: plan.nodes].tolist()
    tree = _fill_tree(plan.limits, made, names, rng)
    slots = _fill_slots(plan.limits, made, names)
    return Forest(tree=tree, slots=slots, paths=walk_paths(tree, slots))


def walk_paths(tree: Tree, slots: Slots) -> list[list[tuple[int, int]]]:
    """Return `Forest.paths` by `parent`, `slot_node` and `slot_position` alone.

    A query sees every token of the nodes above its own, and of its own node the tokens
    up to itself.
    """
    parent, position = np.asarray(tree.parent).tolist(), np.asarray(tree.slot_position)
    held = defaultdict(list)
    for at, node in np.ndenumerate(np.asarray(tree.slot_node)):
        held[int(node)].append((int(position[at]), at))
    own = [[at for _, at in sorted(held[node])] for node in range(len(parent))]

    @functools.cache
    def down_to(node):
        return () if node == NO_NODE else (*down_to(parent[node]), *own[node])

    def path(node, at):
        if node == len(parent) or at not in own[node]:
            return []
        return [*down_to(parent[node]), *own[node][: own[node].index(at) + 1]]

    fields = (slots.node, slots.page, slots.slot)
    rows = zip(*(np.asarray(x).tolist() for x in fields), strict=True)
    return [path(node, (page, slot)) for node, page, slot in rows]


def _fill_tree(limits: Limits, made: Sketch, names, rng):
    empty = Tree.create(limits.nodes, limits.pages, limits.page_size)
    arrays = {
        field.name: np.array(getattr(empty, field.name))
        for field in dataclasses.fields(Tree)
    }
    _fill_nodes(arrays, made, names)
    _number_depth_first(arrays, made, names, rng)
    _fill_pages(arrays, made, names)
    _fill_free(arrays, "nodes", arrays["first"] == limits.nodes)
    _fill_free(arrays, "pages", arrays["page_owner"] == limits.nodes)
    return Tree(**{name: jnp.asarray(array) for name, array in arrays.items()})


def _fill_nodes(arrays, made, names):
    for age in np.flatnonzero(made.live).tolist():
        name, parent = names[age], made.parents[age]
        arrays["parent"][name] = NO_NODE if parent == NO_NODE else names[parent]
        arrays["count"][name] = len(made.tokens[age])
        arrays["start"][name] = made.starts[age]
        arrays["trunk"][name] = names[made.trunks[age]]
        arrays["storage"][name] = names[made.owners[age]]


def _number_depth_first(arrays, made, names, rng):
    children = defaultdict(list)
    for age in rng.permutation(np.flatnonzero(made.live)).tolist():
        children[made.parents[age]].append(age)

    def visit(age, number):
        arrays["first"][names[age]] = number
        number += 1
        for child in children[age]:
            number = visit(child, number)
        arrays["end"][names[age]] = number
        return number

    functools.reduce(lambda number, root: visit(root, number), children[NO_NODE], 0)


def _fill_pages(arrays, made, names):
    for age, places in enumerate(made.tokens):
        for index, at in enumerate(places):
            arrays["slot_position"][at] = made.starts[age] + index
            if made.live[age]:
                arrays["slot_node"][at] = names[age]
                arrays["page_owner"][at[0]] = names[made.owners[age]]


def _fill_free(arrays, kind, is_free):
    free = np.flatnonzero(is_free)
    arrays[f"free_{kind}"][: len(free)] = free
    arrays[f"num_free_{kind}"] = np.int32(len(free))


def _fill_slots(limits: Limits, made: Sketch, names):
    node = np.full(limits.rows, limits.nodes)
    page = np.full(limits.rows, limits.pages)
    slot, position = np.zeros(limits.rows), np.zeros(limits.rows)
    for row, (age, index) in made.queries.items():
        node[row] = names[age]
        page[row], slot[row] = made.tokens[age][index]
        position[row] = made.starts[age] + index
    fields = (node, page, slot, position)
    return Slots(*(jnp.asarray(x, jnp.int32) for x in fields))
