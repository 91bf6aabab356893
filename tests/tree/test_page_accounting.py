"""Random operations on a forest, each compared in full with a model on the host."""

from collections import Counter
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from deft_jax.tree import branching, ownership, pruning, relabel
from deft_jax.tree.appending import append
from deft_jax.tree.state import (
    NO_NODE,
    OUT_OF_NODES,
    OUT_OF_ORDER,
    OUT_OF_PAGES,
    Tree,
    replace,
)
from tests.support.oracle_tree import OracleTree
from tests.support.tree_invariants import assert_same, check

# Nodes, pages, tokens per page. Small, so that both run out.
CAPACITIES = [(20, 20, 1), (24, 9, 4), (16, 5, 16)]
BRANCH_ROWS, APPEND_ROWS, TIPS, PRUNED, ROOTS, CUTS = 5, 24, 3, 3, 3, 4

traces: Counter = Counter()


def compiled(operation):
    """Return a jitted operation that counts its traces for each capacity."""

    def counted(tree, *arguments):
        traces[operation, tree.parent.shape, tree.slot_node.shape] += 1
        return operation(tree, *arguments)

    return jax.jit(counted)


def any_of(nodes):
    """Return a strategy for one of the nodes."""
    return st.sampled_from(sorted(nodes))


any_idle = "idle"
"""Stands for a row that takes no part."""


def up_to(most, nodes, key=None):
    """Return a strategy for one node or several, all different under `key`."""
    key = key or (lambda node: node)
    return st.lists(any_of(nodes), min_size=1, max_size=most, unique_by=key)


branch = compiled(branching.branch)
grow = compiled(append)
prune = compiled(pruning.prune)
accept = compiled(pruning.accept)
accept_and_prune = compiled(pruning.accept_and_prune)
split = compiled(relabel.split)
collapse = compiled(relabel.collapse)
owned = compiled(ownership.owned)


@compiled
def end(tree, doomed, keep, resting, roots):
    """Prune as the end of requests does."""
    return pruning.prune(tree, doomed, keep, resting=resting, roots=roots)


class ForestMachine(RuleBasedStateMachine):
    """Grows, prunes and accepts at random; the model does the same by walking."""

    @initialize(
        capacity=st.sampled_from(CAPACITIES),
        prompts=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    )
    def create(self, capacity, prompts):
        """Make a forest of prompts, some of them empty yet."""
        self.tree = Tree.create(*capacity)
        self.model = OracleTree()
        self.token = count(1)
        roots = self._branch([(NO_NODE, True, False, False)] * len(prompts))
        lengths = zip(roots, prompts, strict=True)
        self._append([root for root, length in lengths for _ in range(length)])

    def is_not_empty(self):
        """Return whether there is a node to do something with."""
        return bool(self.model.nodes)

    def has_grown(self):
        """Return whether pruning mostly leaves something."""
        return len(self.model.nodes) > PRUNED

    def has_drafts(self):
        """Return whether there is something to accept or to reject."""
        return bool(self.model.drafts())

    def has_free_nodes(self):
        """Return whether one is free; a branch may want more."""
        return len(self.model.nodes) < self.tree.num_nodes

    def has_free_pages(self):
        """Return whether one is free; an append may want more."""
        return len(self.model.owners) < self.tree.num_pages

    @precondition(has_free_nodes)
    @rule(data=st.data())
    def branch(self, data):
        """Branches from several nodes at once; some rows take no part."""
        parent = any_of([NO_NODE, *self.model.nodes])
        kind = st.booleans(), st.booleans()
        row = st.tuples(parent, st.just(True), *kind)
        anything = st.integers(NO_NODE - 2, self.tree.num_nodes + 2)
        idle = st.tuples(anything, st.just(False), *kind)
        idle |= st.tuples(any_of(self._idle()[1:]), st.just(True), *kind)
        rows = st.lists(row | row | idle, min_size=1, max_size=BRANCH_ROWS)
        self._branch(data.draw(rows, label="parent, mask, draft, shares"))

    def _branch(self, rows):
        """Add a child for each (parent, mask, draft, shares); return the new nodes."""
        rows = rows + [(0, False, False, False)] * (BRANCH_ROWS - len(rows))
        parent, mask, *kind = (np.array(column) for column in zip(*rows, strict=True))
        before = self.tree
        self.tree, nodes = branch(before, parent.astype(np.int32), mask, *kind)
        nodes = nodes.tolist()
        mask &= [above == NO_NODE or above in self.model.nodes for above in parent]
        if mask.sum() > before.num_nodes - len(self.model.nodes):
            assert nodes == [before.num_nodes] * BRANCH_ROWS
            return self._refused(before, OUT_OF_NODES)
        for node, valid, (above, _, *kind) in zip(nodes, mask, rows, strict=True):
            if valid:
                self.model.branch(node, None if above < 0 else above, *kind)
            else:
                assert node == before.num_nodes
        return [node for node in nodes if node < before.num_nodes]

    def _refused(self, before, bit):
        """Assert that nothing changed but one bit of `overflow`, and clears it."""
        assert_same(self.tree, replace(before, overflow=before.overflow | bit))
        self.tree = before
        return []

    def _childless(self):
        return [x for x, node in self.model.nodes.items() if not node.children]

    def _idle(self):
        """Return NO_NODE and other numbers that are no live node."""
        size = self.tree.num_nodes
        dead = [x for x in range(size) if x not in self.model.nodes]
        return [NO_NODE, -size - 1, size, size + 3, *dead]

    @precondition(is_not_empty)
    @precondition(has_free_pages)
    @rule(data=st.data(), interleave=st.booleans())
    def append(self, data, interleave):
        """Append runs of tokens to several nodes, with idle rows between them.

        The nodes may lie below each other, as long as those below are empty.
        """
        nodes = [x for x in self.model.nodes if self.model.may_append([x])]
        self._append_runs(data, [*nodes, any_idle], interleave)

    @precondition(has_grown)
    @precondition(has_free_pages)
    @rule(data=st.data())
    def append_anywhere(self, data):
        """Append to any nodes; refused where there are tokens below them."""
        self._append_runs(data, [*self.model.nodes], False)

    def _append_runs(self, data, nodes, interleave):
        """Append runs of tokens to some of the nodes."""
        size = self.tree.page_size
        node = st.sampled_from(nodes)
        length = st.sampled_from([1, 1, 2, 3, size - 1, size, size + 1, 2 * size])
        runs = data.draw(st.lists(st.tuples(node, length), min_size=1, max_size=5))
        rows = [(index, node) for node, length in runs for index in range(length)]
        if interleave:
            rows.sort(key=lambda row: row[0])
        idle = any_of(self._idle())
        self._append(
            [data.draw(idle) if node is any_idle else node for _, node in rows][
                :APPEND_ROWS
            ]
        )

    def _append(self, nodes):
        """Append a fresh token to each node; return false if it is refused."""
        before, free = self.tree, self.tree.num_nodes
        rows = nodes + [free] * (APPEND_ROWS - len(nodes))
        tokens = [next(self.token) for _ in rows]
        self.tree, slots = grow(before, *np.array([rows, tokens], np.int32))
        live = [node for node in rows if node in self.model.nodes]
        needed = self.model.pages_needed(live, before.page_size)
        short = needed > before.num_pages - len(self.model.owners)
        bits = OUT_OF_PAGES if short else 0
        bits |= 0 if self.model.may_append(live) else OUT_OF_ORDER
        if bits:
            self._refused(before, bits)
        else:
            assert self.tree.num_free_pages == before.num_free_pages - needed
        self._record([] if bits else rows, tokens, slots)
        return not bits

    def _record(self, rows, tokens, slots):
        """Assert that each row has a slot or is idle, and tell the model."""
        columns = slots.node, slots.page, slots.slot, slots.position
        found = np.stack(columns, axis=1).tolist()
        live = [row for row, node in enumerate(rows) if node in self.model.nodes]
        given = [(rows[x], tokens[x], (found[x][1], found[x][2])) for x in live]
        positions = self.model.append(given)
        for row, position in zip(live, positions, strict=True):
            assert [found[row][0], found[row][3]] == [rows[row], position]
        idle = [self.tree.num_nodes, self.tree.num_pages, 0, 0]
        for row in set(range(APPEND_ROWS)) - set(live):
            assert found[row] == idle

    @precondition(is_not_empty)
    @precondition(has_free_nodes)
    @precondition(has_free_pages)
    @rule(data=st.data(), widths=st.lists(st.integers(1, 3), min_size=1, max_size=3))
    def draft(self, data, widths):
        """Draft a tree below a node, a level of one-token nodes at a time."""
        level = [data.draw(any_of(self._childless()), label="trunk")]
        for width in widths:
            parents = st.lists(any_of(level), min_size=width, max_size=width)
            level = self._branch([(x, True, True, False) for x in data.draw(parents)])
            if not level or not self._append(level):
                break

    @precondition(has_drafts)
    @rule(data=st.data())
    def accept(self, data):
        """Accept draft paths of several trunks at once, and prune with it or not."""
        drafted = {self.model.trunk(x) for x in self.model.drafts()}
        tips = [x for x in self.model.nodes if self.model.trunk(x) in drafted]
        tips = data.draw(up_to(TIPS, tips, key=self.model.trunk), label="tips")
        idle = [NO_NODE] * (TIPS - len(tips))
        tip = np.array(idle + tips, np.int32)
        doomed, keep = [], []
        if data.draw(st.booleans(), label="prune, too"):
            doomed, keep = self._draw_doomed(data)
            marked, kept = self._marks(doomed, keep)
            both = prune(accept(self.tree, tip), marked, kept)
            staying = pruning.Staying(jnp.asarray(kept))
            self.tree = accept_and_prune(self.tree, tip, marked, staying)
            assert_same(self.tree, both)
        else:
            self.tree = accept(self.tree, tip)
        for each in tips:
            self.model.accept(each)
        self.model.prune(doomed, keep)

    @precondition(has_grown)
    @rule(data=st.data())
    def prune(self, data):
        """Prune several nodes, which may lie below each other; keep some ancestors."""
        doomed, keep = self._draw_doomed(data)
        self.tree = prune(self.tree, *self._marks(doomed, keep))
        self.model.prune(doomed, keep)

    @precondition(has_grown)
    @rule(data=st.data())
    def end_requests(self, data):
        """End requests that began at any nodes; some nodes outlive them.

        What is nobody's is pruned, too, unless something below is in use.
        """
        nodes = st.lists(any_of(self.model.nodes), max_size=ROOTS, unique=True)
        roots = data.draw(nodes, label="roots")
        ended = data.draw(nodes, label="ended")
        resting = data.draw(nodes, label="resting")
        keep = data.draw(nodes, label="keep")
        owner = owned(self.tree, self._slots(roots)).tolist()
        for node in range(self.tree.num_nodes):
            live = node in self.model.nodes
            root = self.model.owner(node, roots) if live else None
            assert owner[node] == (ROOTS if root is None else roots.index(root))
        marks = self._marks(ended, keep, resting)
        self.tree = end(self.tree, *marks, self._slots(roots))
        self.model.prune(ended, keep, resting, roots)

    def _slots(self, roots):
        idle = [self.tree.num_nodes] * (ROOTS - len(roots))
        return np.array([*roots, *idle], np.int32)

    @precondition(is_not_empty)
    @rule(data=st.data())
    def split(self, data):
        """Split nodes in several places; some rows take no part."""
        place = st.integers(-1, 2 * self.tree.page_size + 1)
        node = any_of(self.model.nodes) | any_of(self._idle())
        rows = st.lists(st.tuples(node, place), min_size=1, max_size=CUTS)
        rows = data.draw(rows, label="node, at")
        before, size = self.tree, self.tree.num_nodes
        whole = {x: len(node.tokens) for x, node in self.model.nodes.items()}
        places = {(x, at) for x, at in rows if 0 < at < whole.get(x, 0)}
        columns = np.array(rows + [(size, 0)] * (CUTS - len(rows)), np.int32).T
        self.tree, found, relabelling = split(before, *columns)
        ends = dict(zip(rows, found.tolist(), strict=False))
        for (x, at), node in ends.items():
            if x in whole and at == whole[x]:
                assert node == x
            elif (x, at) not in places:
                assert node == size
        if len(places) > size - len(self.model.nodes):
            assert {ends[place] for place in places} == {size}
            self._refused(before, OUT_OF_NODES)
            return
        moved = dict.fromkeys(whole, 0)
        origin = list(range(size))
        for x, at in sorted(places):
            self.model.split(x, at - moved[x], ends[x, at])
            moved[x], origin[ends[x, at]] = at, x
        assert relabelling.origin.tolist() == origin
        assert relabelling.heir.tolist() == list(range(size))

    @precondition(has_grown)
    @rule(data=st.data())
    def collapse(self, data):
        """Join any nodes to their parents, where they are the only child."""
        nodes = st.sets(any_of(self.model.nodes)) | st.just({*self.model.nodes})
        mask = data.draw(nodes, label="mask")
        [marks] = self._marks(mask)
        self.tree, relabelling = collapse(self.tree, marks)
        heirs = self.model.collapse(mask)
        heir = list(range(self.tree.num_nodes))
        for node in heirs:
            while heir[node] in heirs:
                heir[node] = heirs[heir[node]]
        assert relabelling.heir.tolist() == heir
        assert relabelling.origin.tolist() == list(range(self.tree.num_nodes))

    def _draw_doomed(self, data):
        """Nodes to drop, and nodes to keep."""
        doomed = data.draw(up_to(PRUNED, self.model.nodes), label="doomed")
        keep = data.draw(st.just([]) | up_to(PRUNED, self.model.nodes), label="keep")
        return doomed, keep

    def _marks(self, *nodes):
        """Return [N] bool for each list of nodes."""
        every = np.arange(self.tree.num_nodes)
        return [np.isin(every, list(each)) for each in nodes]

    @invariant()
    def is_as_the_model(self):
        """Nodes, depth-first numbers, tokens, slots, pages and free lists."""
        if hasattr(self, "tree"):
            check(self.tree, self.model)
            assert self.tree.overflow == 0

    def teardown(self):
        """Assert that every operation was traced once for each capacity."""
        assert set(traces.values()) <= {1}


TestPageAccounting = ForestMachine.TestCase
TestPageAccounting.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],
)
