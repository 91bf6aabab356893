"""The decode loop on a CUDA device; the op's own suite runs there too."""

import jax
import numpy as np
import pytest

from tests.test_tree_equals_sequences import (
    PROMPTS,
    SETTINGS,
    generate,
    with_length,
)
from tests.tiny_model import decode_alone

pytestmark = pytest.mark.gpu


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
