"""Keys and values in a dtype of their own, under float32 activations."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax import TreeMethod
from deft_jax.attention import device as device_module
from deft_jax.attention.api import tree_attention
from deft_jax.attention.backend import choose_backend
from deft_jax.attention.plan import plan_attention
from deft_jax.attention.spec import AttentionSpec
from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.errors import DeftError
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.families.llama import Llama
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from tests.support.attention_checks import Case, attend, inputs
from tests.support.dense_attention import dense_logits
from tests.support.forest_plans import Plan, plans
from tests.support.forests import grow
from tests.support.models.tree_logits import tree_logits
from tests.support.shapes import HEADS
from tests.support.tiny_model import (
    CAPACITY,
    CONFIG,
    AsciiTokenizer,
    path_logprobs,
    tiny_model,
)
from tests.support.tolerances import (
    TOLERANCE,
    assert_attention_close,
    row_errors,
)

NARROW = ("bfloat16", "float16")
TOKENS = np.random.default_rng(5).integers(0, 256, 22)


@pytest.mark.parametrize("kv_dtype", NARROW)
@pytest.mark.parametrize("options", [{}, {"window": 3, "soft_cap": 5.0}], ids=str)
@given(data=st.data())
def test_attention_reads_narrow_kv_exactly(kv_dtype, options, data: st.DataObject):
    """The numbers that are stored, in float32: the oracle gets them widened."""
    case = Case(HEADS["smollm2_135m"], **options)
    drawn = data.draw(plans(case.limits))
    args = inputs(case, grow(drawn), drawn.seed)
    k, v = (x.astype(kv_dtype) for x in args.poisoned)
    clean = (x.astype(kv_dtype).astype(jnp.float32) for x in args.clean)
    actual = attend(args.q, k, v, args.grouping, **case.options, implementation="xla")
    assert actual[0].dtype == jnp.float32
    expected = attend(
        args.q, *clean, args.grouping, **case.options, implementation="reference"
    )
    assert_attention_close(actual, expected)


@pytest.mark.parametrize("kv_dtype", NARROW)
def test_a_network_with_narrow_kv_stays_near_float32(kv_dtype: str):
    model = Llama.random(SHAPES["tiny"], seed=0, dtype=jnp.float32)
    exact = dense_logits(model, jnp.asarray(TOKENS))
    narrow = tree_logits(model, TOKENS, chunk=8, kv_dtype=jnp.dtype(kv_dtype))
    errors = row_errors(narrow, exact)
    np.testing.assert_array_less(errors, TOLERANCE[kv_dtype])
    assert errors.max() > 10 * TOLERANCE["float32"]


def test_an_engine_stores_what_it_is_told():
    method = TreeMethod("xla", kv_dtype="bfloat16")
    engine = Engine(
        tiny_model(), AsciiTokenizer(), capacity=CAPACITY, implementation=method
    )
    sampling = Sampling(temperature=0.9, seed=3, max_new_tokens=12, ignore_eos=True)
    (tree,) = engine.generate("Hello world", BestOfN(3), sampling)
    pool, hidden = engine.state.pool, engine.state.hidden
    assert {(x.dtype, x.v.dtype) for x in pool} == {(jnp.dtype("bfloat16"),) * 2}
    assert hidden.dtype == jnp.float32
    assert len({leaf.tokens for leaf in tree.leaves()}) == 3
    prompt = AsciiTokenizer().encode("Hello world")
    errors = []
    for leaf in tree.leaves():
        tokens = [*prompt, *leaf.tokens]
        at = np.arange(len(prompt), len(tokens))
        chosen = path_logprobs(tokens[:-1])[at - 1, leaf.tokens]
        sampled = np.asarray(leaf.logprobs)
        errors.append(np.abs(sampled - chosen))
    # The logits of the tiny network are of size 10.
    assert 1e-3 < np.max(errors) < 10 * TOLERANCE["bfloat16"]


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "message"),
    [
        (
            "bfloat16",
            "float32",
            "kv_dtype must be bfloat16, the dtype of the activations, or the "
            "activations be float32, got float32",
        ),
        (
            "float16",
            "bfloat16",
            "kv_dtype must be float16, the dtype of the activations, or the "
            "activations be float32, got bfloat16",
        ),
        (
            "float32",
            "int8",
            "kv_dtype must be one of float32, bfloat16, float16, got int8",
        ),
    ],
)
def test_kv_that_activations_cannot_read(dtype: str, kv_dtype: str, message: str):
    capacity = Capacity(requests=1, rows=2, nodes=4, pages=4, page_size=8, chunk=2)
    method = TreeMethod("xla", kv_dtype=kv_dtype)
    with pytest.raises(DeftError, match=f"^{re.escape(message)}$"):
        method.create_pool(CONFIG, capacity, jnp.dtype(dtype))


@pytest.mark.parametrize("capability", [(9, 0), (8, 0)], ids=["hopper", "ampere"])
def test_the_kernels_refuse_mixed_dtypes(monkeypatch, capability):
    monkeypatch.setattr(
        device_module, "compute_capability", lambda device=None: capability
    )
    q = jax.ShapeDtypeStruct((4, 8, 128), jnp.float32)
    k_pages = jax.ShapeDtypeStruct((3, 2, 64, 128), jnp.bfloat16)
    message = (
        "implementation 'mosaic_gpu' does not take these arrays: keys and values are "
        "bfloat16 under queries of float32; use 'xla'"
    )
    with pytest.raises(DeftError, match=f"^{re.escape(message)}$"):
        choose_backend("mosaic_gpu", q, k_pages)


def test_a_plan_is_for_one_kv_dtype():
    case = Case(HEADS["smollm2_135m"])
    args = inputs(case, grow(Plan(case.limits, nodes=3, reach=2)), 0)
    spec = AttentionSpec.create(case.heads, "float32", kv_dtype="bfloat16")
    plan = plan_attention(args.grouping, spec)
    with pytest.raises(ValueError, match="'bfloat16'\\), got .*'float32'\\)$"):
        tree_attention(args.q, *args.clean, plan)
