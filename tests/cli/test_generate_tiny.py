"""The whole command in this process, with a tiny model."""

import json
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from deft_jax.cli import generate
from deft_jax.cli.main import main
from deft_jax.models.families.llama import Llama
from tests.support.tiny_model import CONFIG, AsciiTokenizer, tiny_model

BROKEN = ord("c")
"""Token whose embedding is not finite."""

SHORT = ("--max-new-tokens", "4", "--max-context", "32", "--seed", "2")


class Opened:
    """A network as `OpenedModel` gives it."""

    tokenizer = AsciiTokenizer()
    config = CONFIG
    dtype = jnp.dtype("float32")

    def __init__(self, network: Llama):
        self.network = network

    def outline(self) -> Llama:
        """Return shapes in place of the weights."""
        graph, state = nnx.split(self.network)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        return nnx.merge(graph, shapes)

    def load(self, progress) -> Llama:
        """Return the network."""
        return self.network


@pytest.fixture
def broken_model(monkeypatch) -> None:
    """Return a model whose numbers are NaN behind every prompt with `BROKEN` in it."""
    graph, state = nnx.split(tiny_model())
    network: Llama = nnx.merge(graph, jax.tree.map(jnp.copy, state))
    assert network.embedding is not None
    network.embedding[...] = network.embedding[...].at[BROKEN].set(math.nan)
    monkeypatch.setattr(generate, "_open", lambda options: Opened(network))


@pytest.mark.usefixtures("broken_model")
@pytest.mark.parametrize("n", ["1", "2"])
def test_result_that_is_not_finite_is_code_1_and_says_so(n, capsys):
    assert main(["generate", "--prompt", "abc", "--n", n, *SHORT]) == 1
    output = capsys.readouterr()
    assert "became NaN or infinite" in output.out + output.err


@pytest.mark.usefixtures("broken_model")
def test_one_broken_prompt_of_two_is_code_1(capsys, tmp_path):
    prompts = ("--prompt", "abd", "--prompt", "abc", "--n", "1")
    path = tmp_path / "trees.json"
    assert main(["generate", *prompts, *SHORT, "--json", "--output", str(path)]) == 1
    _, bad = json.loads(path.read_text())["results"]
    assert "became NaN or infinite" in bad["notice"]
    assert bad["branches"][0]["finish_reason"] == "not-finite"
    assert capsys.readouterr().out == ""
    assert main(["generate", *prompts, *SHORT]) == 1
    assert "became NaN or infinite" in capsys.readouterr().out


@pytest.mark.usefixtures("broken_model")
def test_finite_result_is_code_0(capsys):
    assert main(["generate", "--prompt", "abd", "--n", "2", *SHORT]) == 0
    assert "notice" not in capsys.readouterr().out


@pytest.mark.usefixtures("broken_model")
def test_context_above_the_models_is_refused(capsys):
    too_much = str(CONFIG.context_length + 1)
    code = main(["generate", "--prompt", "abd", "--max-context", too_much])
    assert code == 2
    assert f"context of {CONFIG.context_length} tokens" in capsys.readouterr().err
