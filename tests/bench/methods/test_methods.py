"""All methods decode the same trees: only how they store and read KV differs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.accounting.methods import METHODS
from deft_jax.bench.methods.choice import make_method
from deft_jax.bench.methods.duplicated import (
    DuplicatedMethod,
    copy_caches,
    find_sources,
)
from deft_jax.bench.trees import draft_replay
from deft_jax.bench.trees.draft_replay import DraftReplay
from deft_jax.bench.trees.draft_templates import DraftTemplate, speculative
from deft_jax.bench.trees.templates import TreeTemplate, few_shot, reasoning
from deft_jax.bench.trees.tree_replay import TreeReplay, common_capacity
from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.errors import DeftError
from deft_jax.kv.pool import LayerKV
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.tree.appending import append
from deft_jax.tree.branching import branch
from deft_jax.tree.pruning import prune
from deft_jax.tree.state import NO_NODE, Tree
from tests.support.bench.replay_engines import TightEngine
from tests.support.tiny_model import CONFIG, AsciiTokenizer, tiny_model

LOGPROB_ERROR = 2e-4
OURS = "deft_flatten"
OTHERS = [name for name in METHODS if name != OURS]
SHARING = [name for name in OTHERS if name != "flash_decoding"]

UNEVEN = TreeTemplate.create(
    "uneven", [-1, 0, 0, 0, 1, 1, 1, 4, 4, 3, 9], [11, 3, 9, 5, 1, 8, 13, 2, 6, 7, 1]
)
"""Branches while others run on, in nodes of 1 token and into a single child."""

CIRCLES = TreeTemplate.create(
    "circles",
    [-1, 0, 0, 0, 0, 0, 2, 3, 1, 1, 5, 4, 7],
    [9, 3, 3, 3, 3, 3, 4, 2, 5, 3, 4, 4, 3],
)
"""Children get rows 0, 1 and 2 from 1, 2 and 0, and two others change places."""

TREES = [few_shot(9, 7, 13), UNEVEN, CIRCLES, reasoning("docmerge")[1].shortened(60)]
PAGE_SIZE = 8
CHUNK = 8
"""So short that prompts are read in several."""

CAPACITY = dataclasses.replace(common_capacity(TREES, PAGE_SIZE), chunk=CHUNK)
PATH_TOKENS = max(tree.prompt_tokens + tree.steps for tree in TREES)

PROMPT = 19
ACCEPTS = (1, 5, 3, 1, 1, 4, 2, 5, 2)


def brief(template: DraftTemplate) -> DraftTemplate:
    """Return the same draft tree in a short text."""
    return dataclasses.replace(template, prompt_tokens=PROMPT, accept_lengths=ACCEPTS)


DRAFTS = [brief(speculative(32)), brief(speculative(32, "star"))]
DRAFT_CAPACITY = draft_replay.capacity(DRAFTS[0], PAGE_SIZE)


def engine(method: str, size: Capacity = CAPACITY) -> Engine:
    chosen = make_method(method, "xla", path_tokens=PATH_TOKENS)
    return Engine(
        tiny_model(),
        AsciiTokenizer(),
        capacity=size,
        implementation=chosen,
        prefix_cache=False,
    )


def prompt(template: TreeTemplate | DraftTemplate) -> list[int]:
    return [40 + at * 3 % 80 for at in range(template.prompt_tokens)]


def replay(engine: Engine, template: TreeTemplate | DraftTemplate) -> GenerationTree:
    is_draft = isinstance(template, DraftTemplate)
    strategy = DraftReplay(template) if is_draft else TreeReplay(template)
    (tree,) = engine.generate(prompt(template), strategy, strategy.sampling)
    assert tree.notice is None
    return tree


def told(method: str, size: Capacity, templates) -> list[GenerationTree]:
    """One engine, one template after the other, whose pages it finds in any order."""
    shared = engine(method, size)
    return [replay(shared, template) for template in templates]


@pytest.fixture(scope="module")
def trees() -> list[GenerationTree]:
    return told(OURS, CAPACITY, TREES)


@pytest.fixture(scope="module")
def drafted() -> list[GenerationTree]:
    return told(OURS, DRAFT_CAPACITY, DRAFTS)


def assert_same(actual: GenerationTree, expected: GenerationTree) -> None:
    def exact(tree):
        return [dataclasses.replace(node, logprobs=()) for node in tree.nodes]

    assert exact(actual) == exact(expected)
    for node, other in zip(actual.nodes, expected.nodes, strict=True):
        np.testing.assert_allclose(node.logprobs, other.logprobs, atol=LOGPROB_ERROR)


@pytest.mark.parametrize("method", OTHERS)
def test_trees_are_those_of_tree_attention(trees, method: str):
    for actual, expected in zip(told(method, CAPACITY, TREES), trees, strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("method", SHARING)
def test_drafts_are_verified_alike(drafted, method: str):
    actual = told(method, DRAFT_CAPACITY, DRAFTS)
    for tree, expected in zip(actual, drafted, strict=True):
        assert_same(tree, expected)


def test_the_templates_are_what_they_are_meant_for(trees, drafted):
    """Several chunks and pages, rows that are used again, and drafts that are kept."""
    assert all(tree.prompt_tokens > CHUNK for tree in TREES)
    assert all(tree.prompt_tokens + tree.steps > 2 * PAGE_SIZE for tree in TREES)
    assert any(TreeReplay(tree).rows + 1 < len(tree.parents) for tree in TREES)
    assert sum(len(tree.nodes[1].tokens) for tree in drafted) == 2 * sum(ACCEPTS)
    assert len({tree.nodes[1].tokens for tree in drafted}) == 1
    assert len({tree.nodes for tree in trees}) == len(TREES)


@pytest.mark.parametrize("method", ["deft_node", "flash_decoding"])
def test_all_pages_of_the_tree_may_be_in_use(trees, method: str):
    class Tight(TightEngine):
        def __init__(self):
            needed = TreeReplay(UNEVEN).pages_needed(PAGE_SIZE)
            super().__init__(CAPACITY, pages=needed, nodes=CAPACITY.nodes)
            self.method = make_method(method, "xla", path_tokens=PATH_TOKENS)

    assert_same(replay(Tight(), UNEVEN), trees[TREES.index(UNEVEN)])


def test_node_methods_have_a_page_that_nobody_writes():
    """Neither nodes nor idle rows."""
    shared = engine("deft_node")
    replay(shared, UNEVEN)
    for layer in shared.state.pool:
        assert layer.k.shape[0] == CAPACITY.pages + 1
        assert not layer.k[-1].any() and not layer.v[-1].any()


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_caches_are_copied_as_if_at_once(rows: int):
    """Chains, circles and caches that several others go on with."""
    random = np.random.default_rng(rows)
    content = np.arange((rows + 1) * 3, dtype=np.float32)
    layer = LayerKV(k=jnp.asarray(content), v=jnp.asarray(-content))
    copy = jax.jit(copy_caches, static_argnames="pages")
    for source in [
        *(random.permutation(rows) for _ in range(20)),
        *(random.integers(0, rows, rows) for _ in range(20)),
        np.arange(rows),
    ]:
        (copied,) = copy(jnp.asarray(source, jnp.int32), (layer,), pages=3)
        expected = content.reshape(-1, 3)[source].ravel()
        np.testing.assert_array_equal(copied.k[: 3 * rows], expected)
        np.testing.assert_array_equal(copied.v[: 3 * rows], -expected)


def test_a_branch_may_have_the_number_of_the_node_that_its_row_left():
    """Row 1 leaves its node, which is freed and made anew below the node of row 0."""

    def grow(tree, nodes):
        return append(tree, jnp.asarray(nodes, jnp.int32), jnp.zeros(2, jnp.int32))

    def add(tree, parent, mask):
        parents = jnp.full(2, parent, jnp.int32)
        return branch(tree, parents, jnp.asarray(mask))

    tree, (root, _) = add(Tree.create(8, 8, PAGE_SIZE), NO_NODE, [True, False])
    tree, _ = grow(tree, [root, 8])
    tree, before = add(tree, root, [True, True])
    tree, slots = grow(tree, before)
    at_root = jnp.full(2, root)
    assert find_sources(tree, slots, at_root).tolist() == [0, 0]
    tree, slots = grow(tree, before)
    assert find_sources(tree, slots, before).tolist() == [0, 1]
    tree = prune(tree, jnp.zeros(8, bool).at[before[1]].set(True))
    tree, made = add(tree, before[0], [False, True])
    assert made[1] == before[1]
    tree, slots = grow(tree, [8, made[1]])
    assert find_sources(tree, slots, before).tolist() == [0, 0]


def test_methods_are_equal_by_what_they_are():
    """They are static in the step, so that equal ones share a compilation."""
    made = [make_method(name, "xla") for name in METHODS]
    assert made == [make_method(name, "xla") for name in METHODS]
    assert len(set(made)) == len(METHODS)


def test_an_unknown_method_is_refused():
    with pytest.raises(DeftError, match="one of flash_decoding, .*, got 'fastest'"):
        make_method("fastest")


def test_flash_decoding_refuses_drafts():
    depth = DraftReplay(DRAFTS[0]).planner.draft_depth
    with pytest.raises(DeftError, match=f"not drafts {depth - 1} deep"):
        make_method("flash_decoding", draft_depth=depth)
    for name in METHODS:
        make_method(name, draft_depth=1 if name == "flash_decoding" else depth)


@pytest.mark.parametrize(("path_tokens", "requests"), [(0, 1), (PATH_TOKENS, 2)])
def test_flash_decoding_refuses_what_it_has_no_caches_for(path_tokens, requests):
    method = DuplicatedMethod("xla", path_tokens)
    size = dataclasses.replace(CAPACITY, requests=requests)
    with pytest.raises(DeftError, match=f"{path_tokens} tokens and {requests} req"):
        method.create_pool(CONFIG, size, jnp.dtype("float32"))
