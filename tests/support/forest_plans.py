"""What a random forest looks like, before it is laid out in arrays."""

import dataclasses
from collections import defaultdict

import numpy as np
from hypothesis import strategies as st

from deft_jax.tree.state import NO_NODE


@dataclasses.dataclass(frozen=True)
class Limits:
    """Capacities, the shapes of a forest.

    Attributes:
        nodes: `N`.
        pages: `M`.
        page_size: `P`, tokens per page.
        rows: `Q`, query tokens.
    """

    nodes: int
    pages: int
    page_size: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a forest is grown from, short enough to be read in a failing example.

    Attributes:
        limits: capacities; tokens and queries that do not fit are left out.
        nodes: nodes before pruning.
        roots: chance that a node is a root.
        reach: a parent is one of so many nodes made last; 1 gives a chain.
        tokens: token counts that nodes choose from.
        drafts: chance that a node is a draft, which shares its parent's pages.
        shares: chance that any other node does.
        queries: most query tokens of a node.
        inner: true if nodes with children have query tokens too.
        pruned: chance that a node is pruned after its query tokens were appended.
        holes: chance that a slot of a page in use is left empty.
        seed: seed of all other choices.
    """

    limits: Limits
    nodes: int
    roots: float = 0.0
    reach: int = 1
    tokens: tuple[int, ...] = (1,)
    drafts: float = 0.0
    shares: float = 0.0
    queries: int = 1
    inner: bool = False
    pruned: float = 0.0
    holes: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Sketch:
    """Nodes by age, a parent before its children.

    Attributes:
        parents: age of the parent, NO_NODE for roots.
        trunks: age of the node, or of a draft's nearest ancestor that is none.
        owners: age of the node whose pages hold the node's tokens.
        tokens: (page, slot) of each of the node's tokens.
        starts: position along the path of the node's first token.
        live: false for nodes that were pruned.
        queries: by row, the age of a query's node and its index among its tokens.
    """

    parents: list[int]
    trunks: list[int]
    owners: list[int]
    tokens: list[list[tuple[int, int]]]
    starts: list[int]
    live: list[bool]
    queries: dict[int, tuple[int, int]]


@st.composite
def plans(draw: st.DrawFn, limits: Limits) -> Plan:
    """Draw a plan of a forest within the limits, of one node to all that fit."""
    size = limits.page_size
    mixed = (0, 1, 2, size - 1, size, size + 1, 3 * size)
    tokens = [(1,), (size, 2 * size), mixed, (0, 20 * size)]
    return Plan(
        limits=limits,
        nodes=draw(st.integers(1, limits.nodes)),
        roots=draw(st.sampled_from([0.0, 0.1, 1.0])),
        reach=draw(st.sampled_from([1, 8, limits.nodes])),
        tokens=draw(st.sampled_from(tokens)),
        drafts=draw(st.sampled_from([0.0, 0.5, 0.9])),
        shares=draw(st.sampled_from([0.0, 0.5, 0.9])),
        queries=draw(st.sampled_from([1, 3, 128])),
        inner=draw(st.booleans()),
        pruned=draw(st.sampled_from([0.0, 0.02, 0.2])),
        holes=draw(st.sampled_from([0.0, 0.3])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def sketch(plan: Plan, rng: np.random.Generator) -> Sketch:
    """Make the plan's random choices."""
    parents = _choose_parents(plan, rng)
    trunks, owners = _choose_owners(plan, parents, rng)
    tokens = _place_tokens(plan, owners, rng)
    return Sketch(
        parents=parents,
        trunks=trunks,
        owners=owners,
        tokens=tokens,
        starts=_start_positions(parents, tokens),
        live=_choose_survivors(plan, parents, rng),
        queries=_choose_queries(plan, parents, tokens, rng),
    )


def _choose_parents(plan, rng):
    parents = [NO_NODE]
    for age in range(1, plan.nodes):
        recent = int(rng.integers(max(0, age - plan.reach), age))
        parents.append(NO_NODE if rng.random() < plan.roots else recent)
    return parents


def _choose_owners(plan, parents, rng):
    trunks, owners = [], []
    for age, parent in enumerate(parents):
        is_draft = parent != NO_NODE and rng.random() < plan.drafts
        shares = is_draft or (parent != NO_NODE and rng.random() < plan.shares)
        trunks.append(trunks[parent] if is_draft else age)
        owners.append(owners[parent] if shares else age)
    return trunks, owners


def _place_tokens(plan, owners, rng):
    """Fill pages in random order; while they last each node may open one."""
    free = rng.permutation(plan.limits.pages).tolist()
    room = defaultdict(list)
    tokens = [[] for _ in owners]
    for age, owner in enumerate(owners):
        for _ in range(rng.choice(plan.tokens)):
            reserved = len(owners) - age - 1 if tokens[age] else 0
            if not room[owner] and len(free) > reserved:
                hole = rng.random(plan.limits.page_size) < plan.holes
                hole[rng.integers(plan.limits.page_size)] = False
                page = free.pop()
                room[owner] = [(page, slot) for slot in np.flatnonzero(~hole).tolist()]
            if room[owner]:
                tokens[age].append(room[owner].pop(0))
    return tokens


def _start_positions(parents, tokens):
    starts = []
    for parent in parents:
        is_root = parent == NO_NODE
        starts.append(0 if is_root else starts[parent] + len(tokens[parent]))
    return starts


def _choose_survivors(plan, parents, rng):
    live = []
    for parent in parents:
        grounded = parent == NO_NODE or live[parent]
        live.append(bool(grounded and rng.random() >= plan.pruned))
    return live


def _choose_queries(plan, parents, tokens, rng):
    """Return the last tokens of a node query, in the order of the rows."""
    todo = []
    for age in rng.permutation(len(parents)).tolist():
        if plan.queries and (plan.inner or age not in parents):
            wanted = int(rng.integers(1, plan.queries + 1))
            spare = plan.limits.rows - len(todo)
            todo += [age] * min(wanted, len(tokens[age]), spare)
    rows = sorted(rng.choice(plan.limits.rows, len(todo), replace=False).tolist())
    left = {age: todo.count(age) for age in todo}
    queries = {}
    for row, age in zip(rows, rng.permutation(todo).tolist(), strict=True):
        queries[row] = (age, len(tokens[age]) - left[age])
        left[age] -= 1
    return queries
