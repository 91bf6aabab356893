"""Layers of several kinds: each kind is planned once per step, and tree = sequences."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.attention import device as device_module
from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.errors import DeftError
from deft_jax.layers.ops import FULL
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.families.llama import SLIDING, Llama
from deft_jax.runtime.attention_method import TreeMethod
from deft_jax.runtime.forward import attention_specs, forward
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from deft_jax.tree.appending import append
from deft_jax.tree.state import Tree
from tests.support.jaxprs import count_scoped
from tests.support.tiny_model import (
    CAPACITY,
    WINDOW_CONFIG,
    AsciiTokenizer,
    decode_alone,
    tiny_model,
)

PROMPTS = ["x", "12345678", "A prompt that is longer than the window, by far"]
SETTINGS = {
    "greedy": Sampling(temperature=0.0, max_new_tokens=24),
    "sampled": Sampling(temperature=0.9, seed=7, max_new_tokens=24, ignore_eos=True),
}
NO_WINDOW = dataclasses.replace(
    WINDOW_CONFIG, sliding_window=None, sliding_layers=frozenset()
)


@functools.cache
def window_engine() -> Engine:
    return Engine(tiny_model(WINDOW_CONFIG), AsciiTokenizer(), capacity=CAPACITY)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_branches_equal_sequences(name: str, n: int):
    sampling = SETTINGS[name]
    trees = window_engine().generate(PROMPTS, BestOfN(n), sampling)
    for prompt, tree in zip(PROMPTS, trees, strict=True):
        assert len(tree.leaves()) == n
        for stream, leaf in enumerate(tree.leaves()):
            alone = decode_alone(prompt, sampling, stream, config=WINDOW_CONFIG)
            assert leaf.tokens == alone.tokens
            np.testing.assert_allclose(leaf.logprobs, alone.logprobs, atol=2e-4)


def test_the_window_makes_a_difference():
    """Otherwise the comparison above would not see it."""
    prompt, sampling = PROMPTS[-1], SETTINGS["greedy"]
    texts = {
        decode_alone(prompt, sampling, 0, config=config).tokens
        for config in (WINDOW_CONFIG, NO_WINDOW)
    }
    assert len(texts) == 2


@pytest.fixture(params=[(9, 0), (8, 0)], ids=["hopper", "ampere"])
def _gpu(request, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        device_module, "compute_capability", lambda device=None: request.param
    )
    # What jit keeps of a layer does not know the patched device.
    jax.clear_caches()


def step_of(num_layers: int, sliding: frozenset[int], implementation: str):
    """Return one step of a network as a jaxpr, and as lowered for this machine."""
    config = dataclasses.replace(
        SHAPES["tiny"],
        head_dim=64,
        num_layers=num_layers,
        sliding_window=20,
        sliding_layers=sliding,
    )
    size = Capacity(requests=1, rows=4, nodes=8, pages=6, page_size=16, chunk=4)
    method = TreeMethod(implementation)

    def step(model, tree, pool, node, token):
        tree, slots = append(tree, node, token)
        return forward(model, tree, pool, slots, token, method)

    dtype = jnp.dtype("bfloat16")
    args = (
        jax.eval_shape(lambda: Llama.random(config, seed=0, dtype=dtype)),
        jax.eval_shape(lambda: Tree.create(size.nodes, size.pages, size.page_size)),
        jax.eval_shape(lambda: method.create_pool(config, size, dtype)),
        *[jax.ShapeDtypeStruct((size.rows,), jnp.int32)] * 2,
    )
    return step, args


def planning(num_layers: int, sliding: frozenset[int]) -> int:
    """Count what one step of a network computes to group and to plan, on a GPU."""
    step, args = step_of(num_layers, sliding, "mosaic_gpu")
    return count_scoped(jax.make_jaxpr(step)(*args).jaxpr, "grouping")


@pytest.mark.usefixtures("_gpu")
def test_each_kind_is_planned_once_whatever_the_layers():
    full = planning(2, frozenset())
    assert planning(6, frozenset()) == full
    sliding = planning(2, frozenset({0, 1}))
    both = planning(2, frozenset({0}))
    assert planning(6, frozenset({0, 2, 4})) == both
    assert max(full, sliding) + 50 < both < full + sliding


def test_plain_programs_group_once_too():
    """In the optimised program of a CPU: pages are sorted once, not once per layer."""

    def sorts(num_layers: int) -> int:
        step, args = step_of(num_layers, frozenset({0}), "xla")
        return str(jax.jit(step).lower(*args).compile().as_text()).count(" sort(")

    once = sorts(2)
    assert once > 0
    assert sorts(4) == once


def test_a_kind_that_the_network_did_not_name_is_refused():
    model = tiny_model(WINDOW_CONFIG)
    specs = attention_specs(model)
    assert [specs[kind].logits.window for kind in sorted(specs)] == [None, 9]
    specs = {FULL: specs[FULL]}
    capacity = Capacity(requests=1, rows=2, nodes=4, pages=4, page_size=8, chunk=2)
    method, tree = TreeMethod(), Tree.create(4, 4, 8)
    pool = method.create_pool(model.config, capacity, model.dtype)
    row = jnp.full(2, 4, jnp.int32)
    tree, slots = append(tree, row, row)
    plan, _ = method.plan(tree, slots, pool, None, specs)
    message = (
        "a layer attends as kind 'sliding_attention'; expected one of the network's "
        "attention_specs: 'full_attention'"
    )
    with pytest.raises(DeftError, match=f"^{re.escape(message)}$"):
        plan.of_kind(SLIDING)
