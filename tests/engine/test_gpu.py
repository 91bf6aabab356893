"""The decode loop on a CUDA device; the op's own suite runs there too."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.attention.backend import choose_backend
from deft_jax.engine.engine import Engine
from deft_jax.models.families.llama import Llama
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from tests.runtime.test_tree_equals_sequences import (
    PROMPTS,
    SETTINGS,
    generate,
    with_length,
)
from tests.support.tiny_model import CAPACITY, CONFIG, AsciiTokenizer, decode_alone

pytestmark = pytest.mark.gpu


# The kernels do not take float32, and say so on the devices they are made for.
@pytest.mark.filterwarnings("ignore:tree_attention uses 'xla'")
@pytest.mark.parametrize("name", ["greedy", "everything"])
def test_branches_equal_sequences_on_the_gpu(name: str):
    assert jax.default_backend() == "gpu"
    sampling = with_length(SETTINGS[name])
    # TF32, the default for float32 products there, would part branches at near ties.
    with jax.default_matmul_precision("highest"):
        for prompt, leaves in zip(PROMPTS, generate(PROMPTS, 3, sampling), strict=True):
            for stream, leaf in enumerate(leaves):
                alone = decode_alone(prompt, sampling, stream)
                assert leaf.tokens == alone.tokens
                np.testing.assert_allclose(leaf.logprobs, alone.logprobs, atol=2e-4)


def test_decoding_with_the_kernels():
    """Runs the whole loop on bfloat16 with the kernels, and again with XLA.

    Rounding may make them part at a near tie; up to there they must agree.
    """
    config = dataclasses.replace(CONFIG, head_dim=64)
    model = Llama.random(config, seed=1, dtype=jnp.bfloat16)
    capacity = dataclasses.replace(CAPACITY, page_size=16)
    sampling = Sampling(temperature=0.0, max_new_tokens=8, ignore_eos=True)

    def leaves(implementation: str):
        with pytest.MonkeyPatch.context() as patch:
            picked = []

            def pick(name, q, k_pages):
                backend = choose_backend(name or implementation, q, k_pages)
                picked.append(backend.implementation)
                return backend

            # The package's attribute of this name is the function.
            module = sys.modules["deft_jax.attention.api"]
            patch.setattr(module, "choose_backend", pick)
            jax.clear_caches()
            engine = Engine(model, AsciiTokenizer(), capacity=capacity)
            trees = engine.generate(PROMPTS, BestOfN(3), sampling)
            assert set(picked) == {implementation}
        return [leaf for tree in trees for leaf in tree.leaves()]

    shared = 0
    for ours, theirs in zip(leaves("mosaic_gpu"), leaves("xla"), strict=True):
        same = np.equal(ours.tokens, theirs.tokens)
        upto = int(np.argmin(np.append(same, False)))
        np.testing.assert_allclose(
            ours.logprobs[:upto], theirs.logprobs[:upto], atol=0.05
        )
        shared += upto
    assert shared >= 4 * len(PROMPTS) * 3
