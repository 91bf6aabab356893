"""What nodes carry: children start with it, plans change it, trunks take it over."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.capacity import Capacity
from deft_jax.errors import DeftError
from deft_jax.runtime.node_carry import PlannerState, grown
from deft_jax.sampling.request_table import make_request_table
from deft_jax.strategies import Plan, View, check_planner
from deft_jax.strategies.parallel import ContinueAll
from deft_jax.tree.branching import branch
from deft_jax.tree.state import NO_NODE, Tree

SIZE = 16
CAPACITY = Capacity(requests=2, rows=4, nodes=SIZE, pages=16, page_size=4)


@dataclasses.dataclass(frozen=True)
class Carrying(ContinueAll):
    """Nodes carry a number and a pair; the host may score them."""

    may_wait: bool = True

    @property
    def node_carry(self):
        return {"number": np.int32(7), "pair": np.array([1.0, 2.0], np.float32)}


def forest():
    """Return a tree and its nodes: root a, child b, drafts c below b and d below c."""
    tree, nodes = Tree.create(SIZE, 16, 4), []
    for draft in [False, False, True, True]:
        parent = nodes[-1] if nodes else NO_NODE
        tree, node = branch(
            tree, jnp.array([parent]), jnp.array([True]), jnp.array([draft])
        )
        nodes.append(int(node[0]))
    return tree, nodes


def look(tree, node, generated, state) -> View:
    """Return what the planner sees of four rows of request 0."""
    zeros, rows = jnp.zeros(4, jnp.int32), jnp.array(node, jnp.int32)
    view = View(
        tree=tree,
        table=make_request_table([None] * 2, [None] * 2, ()),
        node=rows,
        request=jnp.where(rows < SIZE, 0, 2),
        number=jnp.arange(4),
        generated=jnp.array(generated, jnp.int32),
        logits=jnp.zeros((4, 5)),
        token=zeros,
        logprob=jnp.zeros(4),
        finish=zeros,
        roots=jnp.array([0, SIZE]),
    )
    return state.seen(Carrying(), view)


def first_state():
    return PlannerState.create(Carrying(), CAPACITY)


def test_everything_begins_as_the_planner_says():
    state = first_state()
    assert state.own == ()
    assert state.carry["number"].tolist() == [7] * SIZE
    assert state.carry["pair"].tolist() == [[1.0, 2.0]] * SIZE
    assert np.isnan(state.score).all()
    plain = PlannerState.create(ContinueAll(), CAPACITY)
    assert (plain.carry, plain.score) == ((), None)


def test_the_root_of_a_fresh_row_is_as_at_first():
    tree, (a, b, _, _) = forest()
    state = first_state()
    used = jax.tree.map(lambda x: x + 3, state.carry)
    state = state._replace(carry=used, score=jnp.zeros(SIZE))
    view = look(tree, [a, b, SIZE, SIZE], [0, 2, 0, 0], state)
    assert (view.carry["number"][a], view.carry["number"][b]) == (7, 10)
    assert view.carry["pair"][a].tolist() == [1.0, 2.0]
    assert view.score is not None
    assert np.isnan(view.score[a]) and view.score[b] == 0


def test_nodes_carry_what_the_plan_says_and_else_what_they_did():
    tree, (a, b, _, _) = forest()
    state = first_state()
    number = state.carry["number"].at[b].set(20)
    state = state._replace(
        carry=state.carry | {"number": number},
        score=jnp.arange(SIZE, dtype=jnp.float32),
    )
    view = look(tree, [b, b, a, SIZE], [2, 2, 0, 0], state)
    plan = dataclasses.replace(
        Plan.continue_all(view), branch=jnp.array([False, True, True, False])
    )
    node = jnp.array([b, 9, 12, SIZE])
    after = grown(view, plan, tree, node, (), 1)
    assert after.carry["number"][node[:3]].tolist() == [20, 20, 7]
    # A new node has no score; one that grows keeps it until the planner looks again.
    assert np.isnan(after.score[jnp.array([9, 12])]).all() and after.score[b] == b
    said = {"number": jnp.arange(30, 34), "pair": jnp.zeros((4, 2))}
    after = grown(view, dataclasses.replace(plan, carry=said), tree, node, (), 1)
    assert after.carry["number"][node[:3]].tolist() == [30, 31, 32]
    assert after.carry["pair"][12].tolist() == [0.0, 0.0]
    others = np.setdiff1d(np.arange(SIZE), [b, 9, 12])
    assert (after.carry["number"][others] == state.carry["number"][others]).all()


def test_a_trunk_takes_over_the_tip_that_it_accepts_and_new_drafts_follow_it():
    tree, (_, b, c, d) = forest()
    state = first_state()
    number = state.carry["number"].at[jnp.array([b, c, d])].set(jnp.array([20, 30, 40]))
    state = state._replace(carry=state.carry | {"number": number})
    view = look(tree, [d, SIZE, SIZE, SIZE], [4, 0, 0, 0], state)
    for tip, expected in [(d, 40), (c, 30), (b, 20)]:
        # Row 0 goes on in the trunk, rows 1 to 3 are a chain of drafts behind it.
        plan = dataclasses.replace(
            Plan.continue_all(view),
            accept=jnp.array([tip, NO_NODE, NO_NODE, NO_NODE]),
            source=jnp.array([tip, SIZE, SIZE + 1, SIZE + 1]),
            branch=jnp.array([False, True, True, True]),
        )
        node = jnp.array([b, 10, 11, 12])
        after = grown(view, plan, tree, node, (), 3)
        assert after.carry["number"][node].tolist() == [expected] * 4


def test_plans_with_values_of_another_shape_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Wrong(Carrying):
        kind: str = "shape"

        def plan(self, state, view):
            plan = Plan.continue_all(view)
            rows = jnp.zeros(4, jnp.int32)
            carry = {
                "shape": {"number": rows, "pair": jnp.zeros((4, 3))},
                "structure": (rows,),
            }
            waits = jnp.zeros(2, bool)
            if self.kind in carry:
                return state, dataclasses.replace(plan, carry=carry[self.kind])
            return state, dataclasses.replace(plan, wait=waits)

    check_planner(Wrong(kind="wait"), CAPACITY)
    for planner, message in [
        (Wrong(), r"carry\['pair'\] must be float32\[4, 2\], got float32\[4, 3\]"),
        (Wrong(kind="structure"), "carry must be PyTreeDef"),
        (Wrong(may_wait=False, kind="wait"), "wait must be None, since the planner's"),
    ]:
        with pytest.raises(DeftError, match=message):
            check_planner(planner, CAPACITY)
