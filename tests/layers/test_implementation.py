"""A named implementation chooses all that a layer runs, on any device."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from deft_jax.attention import device as device_module
from deft_jax.kv.pool import create_pool
from deft_jax.layers.ops import FULL, LayerOps
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.families.llama import Llama
from deft_jax.runtime.attention_method import TreeMethod
from deft_jax.runtime.forward import forward
from deft_jax.tree.appending import append
from deft_jax.tree.state import Tree

CONFIG = dataclasses.replace(SHAPES["tiny"], head_dim=64)
ROWS, PAGES, PAGE_SIZE = 4, 6, 16
KERNELS = ("grouped_partial_attention", "rotary_append", "swiglu")


@pytest.fixture(params=[(9, 0), (8, 0)], ids=["hopper", "ampere"])
def _gpu(request, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        device_module, "compute_capability", lambda device=None: request.param
    )


@pytest.fixture
def _hopper(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device_module, "compute_capability", lambda device=None: (9, 0))


def traced(implementation: str | None) -> str:
    """Return the program of one step of a tiny bfloat16 network."""

    def step(model, tree, pool, node, token):
        tree, slots = append(tree, node, token)
        method = TreeMethod(implementation)
        return forward(model, tree, pool, slots, token, method)

    # Anew for each name: what jit keeps of a layer does not know the patched device.
    jax.clear_caches()
    model = jax.eval_shape(lambda: Llama.random(CONFIG, seed=0, dtype=jnp.bfloat16))
    tree = jax.eval_shape(lambda: Tree.create(4, PAGES, PAGE_SIZE))
    sizes = CONFIG.num_layers, PAGES, CONFIG.num_kv_heads, PAGE_SIZE, CONFIG.head_dim
    pool = jax.eval_shape(lambda: create_pool(*sizes, jnp.dtype("bfloat16")))
    row = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    return str(jax.make_jaxpr(step)(model, tree, pool, row, row))


def kernels(program: str) -> set[str]:
    """Return the Pallas kernels of a program by name."""
    names = {name for name in KERNELS if name in program}
    assert bool(names) == ("kernel_name=" in program)
    return names


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize("implementation", [None, "mosaic_gpu"])
def test_the_kernels_are_all_there(implementation: str | None):
    assert kernels(traced(implementation)) == set(KERNELS)


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_plain_implementations_run_no_kernel_at_all(implementation: str):
    assert kernels(traced(implementation)) == set()


@pytest.mark.usefixtures("_hopper")
def test_the_reference_walks_no_pages():
    """It is the oracle: one softmax over all slots, not the walk of `xla`."""
    assert "tree_attention_xla" in traced("xla")
    assert "tree_attention_xla" not in traced("reference")


def test_a_network_looks_at_no_device(_hopper):
    """What it runs comes from the decoder: plain operations stay plain on Hopper."""

    def attend(qkv, cache, kind=FULL):
        return qkv.rotated()[0], cache

    def run(model, row):
        return model(row, row, (None,) * CONFIG.num_layers, LayerOps(attend))

    jax.clear_caches()
    model = jax.eval_shape(lambda: Llama.random(CONFIG, seed=0, dtype=jnp.bfloat16))
    row = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    assert kernels(str(jax.make_jaxpr(run)(model, row))) == set()
