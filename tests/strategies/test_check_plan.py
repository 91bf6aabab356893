"""What is wrong with a plan is said in one line, with the row and the numbers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.errors import DeftError
from deft_jax.sampling.params import Sampling, rows_for
from deft_jax.sampling.request_table import RequestTable
from deft_jax.strategies import (
    LENGTH,
    RUNNING,
    BestOfN,
    Plan,
    View,
    check_plan,
    check_planner,
    checked,
)
from deft_jax.tree.appending import append
from deft_jax.tree.branching import branch
from deft_jax.tree.state import NO_NODE, Tree
from tests.support.strategies.checked_cases import CheckedCases
from tests.support.strategies.prompt_lookup import PromptLookup
from tests.support.strategies.random_growth import RandomGrowth
from tests.support.tiny_model import CAPACITY, tiny_engine

N, ROWS, VOCAB = 16, 5, 20


def add(tree: Tree, parent: int, tokens: int, draft: bool = False):
    """Return a tree with one more node, and its number."""
    tree, node = branch(
        tree, jnp.array([parent]), jnp.array([True]), jnp.array([draft])
    )
    for _ in range(tokens):
        tree, _ = append(tree, node, jnp.array([7]))
    return tree, int(node[0])


@pytest.fixture(scope="module")
def nodes():
    r"""Return a forest of two requests; the numbers of its nodes by name.

    root a (3 tokens) - b (2) - c (1)         root z (2) - y (1)
                      \ d (1) - e, f drafts of one token each
    """
    tree = Tree.create(N, 16, 4)
    named = {}
    for name, parent, tokens, draft in [
        ("a", None, 3, False),
        ("b", "a", 2, False),
        ("c", "b", 1, False),
        ("d", "a", 1, False),
        ("e", "d", 1, True),
        ("f", "e", 1, True),
        ("z", None, 2, False),
        ("y", "z", 1, False),
    ]:
        above = NO_NODE if parent is None else named[parent]
        tree, named[name] = add(tree, above, tokens, draft)
    named["free"] = min(set(range(N)) - set(named.values()))
    return tree, named


@pytest.fixture
def view(nodes) -> View:
    """Rows at c, d, e, f of request 0 and at y of request 1."""
    tree, at = nodes
    node = [at[name] for name in "cdefy"]
    rows = rows_for([None, None, None], 1)
    return View(
        tree=tree,
        table=RequestTable(
            sampling=jax.tree.map(jnp.asarray, rows),
            max_new_tokens=jnp.array([5, 9, 1], jnp.int32),
            eos=jnp.ones((3, 1), jnp.int32),
        ),
        node=jnp.array(node, jnp.int32),
        request=jnp.array([0, 0, 0, 0, 1], jnp.int32),
        number=jnp.array([0, 1, 2, 3, 0], jnp.int32),
        generated=jnp.array([3, 1, 2, 3, 1], jnp.int32),
        logits=jnp.zeros((ROWS, VOCAB)),
        token=jnp.full(ROWS, 9, jnp.int32),
        logprob=jnp.full(ROWS, -3.0),
        finish=jnp.zeros(ROWS, jnp.int32),
        roots=jnp.array([at["a"], at["z"], N], jnp.int32),
    )


def simple(view: View, **changes: Any) -> Plan:
    """Return the plan in which the branches c, d and y go on in place."""
    used = jnp.array([True, True, False, False, True])
    plan = Plan.continue_all(view)
    return change(
        dataclasses.replace(plan, source=jnp.where(used, plan.source, NO_NODE)),
        **changes,
    )


def change(plan: Plan, **changes: Any) -> Plan:
    """Return the plan with single entries changed: `name={row: value}`."""
    for name, entries in changes.items():
        array = getattr(plan, name)
        for row, value in entries.items():
            array = array.at[row].set(value)
        plan = dataclasses.replace(plan, **{name: array})
    return plan


def speculation(view: View, at: dict[str, int]) -> Plan:
    """Return the plan that accepts both drafts, goes on, and drafts two tokens anew."""
    source = [at["c"], at["d"], N + 1, N + 2, at["y"]]
    return dataclasses.replace(
        Plan.continue_all(view),
        source=jnp.array(source, jnp.int32),
        branch=jnp.array([False, False, True, True, False]),
        draft=jnp.array([False, False, True, True, False]),
        accept=jnp.full(ROWS, NO_NODE).at[1].set(at["f"]),
        generated=jnp.array([4, 4, 5, 6, 2], jnp.int32),
    )


def test_right_plans_pass(view, nodes):
    check_plan(view, simple(view))
    check_plan(view, speculation(view, nodes[1]), draft_depth=3)


BAD = {
    "row 0 continues node {free}, which is not live": {"source": {0: "free"}},
    "row 0 continues node -7, which is not live": {"source": {0: -7}},
    "row 1 continues row 4 of the plan; it may only be an earlier": {
        "source": {1: N + 4}
    },
    "row 3 continues row 2 of the plan, which does not go on": {"source": {3: N + 2}},
    "row 3 is on level 2 of the plan's rows; the planner's draft_depth is 1": {
        "source": {3: N + 1},
        "branch": {3: True},
    },
    "row 1 takes token 20; the vocabulary has 0 to 19": {"token": {1: 20}},
    "row 1 takes token -1;": {"token": {1: -1}},
    "row 4 is of request 0; its path is of request 1": {"request": {4: 0}},
    "row 0 has finish code 7, not 0, 1 or 2": {"finish": {0: 7}},
    "row 0 has generated 9 tokens with this one; its path has 4": {
        "generated": {0: 9},
    },
    "row 2 goes on with 5 of 5 tokens; finish must be 2": {
        "source": {0: NO_NODE, 2: N + 1, 1: "c"},
        "branch": {2: True},
        "generated": {2: 5, 1: 4},
    },
    "rows 0 and 1 both grow node {c} in place": {
        "source": {1: "c"},
        "generated": {1: 4},
    },
    "row 0 grows node {b} in place, which has a child, {c}": {
        "source": {0: "b"},
        "generated": {0: 3},
    },
    "row 1 branches from node {c}, which row 0 grows in place": {
        "source": {1: "c"},
        "branch": {1: True},
        "generated": {1: 4},
    },
    "row 1 grows node {c} in place, from which row 0 branches": {
        "source": {1: "c"},
        "branch": {0: True},
        "generated": {1: 4},
    },
    "row 3 branches from row 1's new node, which row 2 grows in place": {
        "source": {2: N + 1, 3: N + 1},
        "branch": {1: True, 3: True},
        "generated": {2: 3, 3: 3},
    },
    "row 3 grows row 1's new node in place, from which row 2 branches": {
        "source": {2: N + 1, 3: N + 1},
        "branch": {1: True, 2: True},
        "generated": {2: 3, 3: 3},
    },
    "row 0 is a draft and must branch": {"draft": {0: True}},
    "rows 0 and 1 both make child 3": {
        "source": {1: "c"},
        "branch": {0: True, 1: True},
        "generated": {1: 4},
        "child": {0: 3, 1: 3},
    },
    "row 0 continues node {c}, which goes with node {b} that the plan prunes": {
        "prune": {"b": True}
    },
    "node {free} is pruned, which is not live": {"prune": {"free": True}},
    "row 2 accepts node {free}, which is not live": {"accept": {2: "free"}},
    "rows 0 and 2 accept drafts of one trunk, node {d}": {"accept": {0: "e", 2: "f"}},
    "row 2 continues node {f}, which is not live": {
        "accept": {1: "f"},
        "generated": {1: 4},
        "source": {2: "f"},
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_plans_are_refused_in_one_line(view, nodes, message):
    at = nodes[1]
    changes = {
        name: {at.get(row, row): at.get(value, value) for row, value in entries.items()}
        for name, entries in BAD[message].items()
    }
    depth = 2 if "of 5 tokens" in message or "new node" in message else 1
    with pytest.raises(DeftError) as caught:
        check_plan(view, simple(view, **changes), draft_depth=depth)
    assert str(caught.value).startswith(message.format(**at))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("above", "message"),
    [
        ("d", "row 1 accepts node {f}, so that node {d} grows; a node above the tip"),
        ("e", "row 1 accepts node {f}, so that node {d} grows; a node above the tip"),
        ("f", "row 1 grows node {d} in place, which has a child, {new}"),
    ],
)
def test_accepted_paths_have_no_children_but_drafts_above_their_tip(
    view, nodes, above, message
):
    tree, at = nodes
    tree, new = add(tree, at[above], 1)
    view = dataclasses.replace(view, tree=tree)
    plan = change(
        simple(view), accept={1: at["f"]}, generated={1: 4}, source={4: NO_NODE}
    )
    with pytest.raises(DeftError) as caught:
        check_plan(view, plan)
    assert str(caught.value).startswith(message.format(**at, new=new))
    assert "\n" not in str(caught.value)


def test_what_hangs_on_rejected_drafts_goes_with_them(view, nodes):
    tree, at = nodes
    tree, new = add(tree, at["e"], 1)
    view = dataclasses.replace(view, tree=tree)
    plan = change(simple(view), accept={1: at["d"]}, source={4: new})
    with pytest.raises(DeftError, match=f"row 4 continues node {new}, which is not"):
        check_plan(view, plan)


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("token", jnp.zeros((ROWS, 1), jnp.int32), "must be int32[5], got int32[5, 1]"),
        ("branch", jnp.zeros(ROWS, jnp.int32), "must be bool[5], got int32[5]"),
        ("prune", np.zeros(ROWS, bool), "must be bool[16], got bool[5]"),
    ],
)
def test_wrong_shapes_are_refused(view, name, value, got):
    with pytest.raises(DeftError) as caught:
        check_plan(view, dataclasses.replace(simple(view), **{name: value}))
    assert f"the plan's {name} {got}" == str(caught.value)


MISTAKES = ("never finishes", "token", "accept", "source", "row", "far")


@dataclasses.dataclass(frozen=True)
class Careless(BestOfN):
    """Branches that go on with what the field `wrong` says; its own planner.

    All planners are equal and find what goes wrong in their state, so that they share
    a program.

    Attributes:
        wrong: one of `MISTAKES`, what goes wrong with the third token of row 0.
        draft_depth: levels of rows.
    """

    wrong: str = dataclasses.field(default="far", compare=False)
    draft_depth: int = 1

    @property
    def planner(self) -> Any:
        return dataclasses.replace(self, n=1)

    def init(self, capacity):
        return jnp.int32(MISTAKES.index(self.wrong))

    def plan(self, state, view: View):
        plan = Plan.continue_all(view)
        size = view.tree.num_nodes
        values = {
            "token": 10**6,
            "accept": size + 3,
            "source": jnp.argmin(view.tree.live).astype(jnp.int32),
            "row": size + 9,
            "far": 10**6,
        }
        finish = jnp.where(state == 0, RUNNING, plan.finish)
        plan = dataclasses.replace(plan, finish=finish)
        third = (view.number == 0) & (view.generated == 2) & view.is_live
        for mistake, bad in values.items():
            name = mistake if mistake in ("token", "accept") else "source"
            is_bad = third & (state == MISTAKES.index(mistake))
            value = jnp.where(is_bad, bad, getattr(plan, name))
            plan = dataclasses.replace(plan, **{name: value})
        return state, plan


@pytest.fixture(scope="module")
def checked_cases() -> CheckedCases:
    return CheckedCases(Careless(2))


GREEDY = Sampling(temperature=0.0, max_new_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("wrong", ["source", "row", "far", "token", "accept"])
def test_a_bad_plan_harms_no_other_branch(wrong):
    """Branch 0 stops where its row asks for the impossible; the others go on."""
    engine = tiny_engine()
    expected = engine.generate(["Hello", "abc"], BestOfN(2), GREEDY)
    trees = engine.generate(["Hello", "abc"], Careless(2, wrong), GREEDY)
    for tree, right in zip(trees, expected, strict=True):
        first, second = tree.leaves()
        good = right.leaves()
        assert second.tokens == good[1].tokens
        length = 8 if wrong == "accept" else 2
        assert first.tokens == good[0].tokens[:length]
    state = engine.state
    assert state.tree.num_free_pages == CAPACITY.pages
    assert state.tree.num_free_nodes == CAPACITY.nodes


def test_no_branch_exceeds_its_limit():
    sampling = Sampling(max_new_tokens=6, seed=3)
    (tree,) = tiny_engine().generate("Hello", Careless(3, "never finishes"), sampling)
    assert [len(leaf.tokens) for leaf in tree.leaves()] == [6] * 3
    assert {leaf.finish_reason for leaf in tree.leaves()} == {"length"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("far", "row 0 continues row 999904 of the plan"),
        ("token", "row 0 takes token 1000000; the vocabulary has 0 to 127"),
        ("never finishes", "row 0 goes on with 6 of 6 tokens; finish must be 2"),
    ],
)
def test_a_checked_strategy_raises_what_was_wrong_first(wrong, message, checked_cases):
    sampling = dataclasses.replace(GREEDY, max_new_tokens=6)
    with pytest.raises(DeftError, match=message) as caught:
        strategy = checked_cases.take(Careless(2, wrong))
        tiny_engine().generate("Hello", strategy, sampling)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "strategy",
    [BestOfN(2), PromptLookup(depth=3, paths=2)],
    ids=["best_of", "prompt_lookup"],
)
def test_a_checked_strategy_gives_what_it_gives_unchecked(strategy):
    prompts, engine = ["Hello", "12345678"], tiny_engine()
    sampling = Sampling(max_new_tokens=8, seed=1)
    expected = engine.generate(prompts, strategy, sampling)
    found = engine.generate(prompts, checked(strategy), sampling)
    assert [tree.nodes for tree in found] == [tree.nodes for tree in expected]


def test_plans_of_a_search_with_resting_nodes_are_right():
    growth = RandomGrowth(width=4, children=3, nodes=28, steps=30)
    (tree,) = tiny_engine().generate("Hello", checked(growth), Sampling(seed=1))
    assert len(tree.nodes) > 20


@dataclasses.dataclass(frozen=True)
class Loops(BestOfN):
    """A planner with a loop that counts to three, in one of two ways.

    Attributes:
        carries_flag: true to carry whether to go on, false to compute it.
        draft_depth: levels of rows.
    """

    carries_flag: bool = False
    draft_depth: int = 1

    def init(self, capacity):
        return jnp.int32(0)

    def plan(self, state, view: View):
        def goes_on(carry):
            return carry[0] if self.carries_flag else carry[1] < 3

        def step(carry):
            return carry[1] < 2, carry[1] + 1

        _, count = jax.lax.while_loop(goes_on, step, (jnp.bool_(True), jnp.int32(0)))
        plan = jax.jit(Plan.continue_all)(view)
        return state + count, plan


def test_loops_that_only_carry_a_flag_are_found():
    check_planner(Loops(), CAPACITY)
    with pytest.raises(DeftError, match="a while_loop .* only carries a flag"):
        check_planner(Loops(carries_flag=True), CAPACITY)


class Unhashable(Loops):
    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class Grows(Loops):
    def plan(self, state, view):
        state, plan = super().plan(state, view)
        return jnp.stack([state, state]), plan


@pytest.mark.parametrize(
    ("planner", "message"),
    [
        (Unhashable(), "a planner must be hashable"),
        (Grows(), "next state must have the shapes of its first"),
    ],
)
def test_planners_that_cannot_be_in_the_loop_are_refused(planner, message):
    with pytest.raises(DeftError, match=message) as caught:
        check_planner(planner, CAPACITY)
    assert "\n" not in str(caught.value)


def test_tokens_change_with_all_that_follows_from_them(view):
    token = jnp.array([1, 4, 9, 9, 9], jnp.int32)
    after = jnp.array([0, 4, 2, 3, 0], jnp.int32)
    plan = Plan.continue_all(view).with_tokens(view, token, after)
    assert plan.token.tolist() == token.tolist()
    assert plan.finish.tolist() == [1, RUNNING, RUNNING, RUNNING, RUNNING]
    assert plan.generated.tolist() == [4, 2, 3, 4, 4]
    assert plan.request.tolist() == [0, 1, 0, 0, 0]
    np.testing.assert_allclose(plan.logprob, -3.0)
    full = dataclasses.replace(view, generated=view.generated + 1)
    plan = Plan.continue_all(full).with_tokens(full, token)
    assert plan.finish.tolist() == [1, RUNNING, RUNNING, LENGTH, RUNNING]


def test_log_probabilities_of_other_tokens_are_the_models_own(view):
    logits = np.random.default_rng(0).normal(scale=4, size=(ROWS, VOCAB))
    exact = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    view = dataclasses.replace(
        view,
        logits=jnp.asarray(logits, jnp.float32),
        logprob=jnp.asarray(exact[:, 9], jnp.float32),
    )
    for token in range(VOCAB):
        chosen = jnp.full(ROWS, token, jnp.int32)
        plan = Plan.continue_all(view).with_tokens(view, chosen)
        np.testing.assert_allclose(plan.logprob, exact[:, token], atol=2e-6)
