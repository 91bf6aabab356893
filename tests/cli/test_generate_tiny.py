"""The whole command in this process, with a tiny model."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from deft_jax.attention import device as attention_device
from deft_jax.cli import device as cli_device
from deft_jax.cli import generate
from deft_jax.cli.main import main
from deft_jax.engine import compilation_cache
from deft_jax.models import load
from deft_jax.models.config.rope import LongRopeScaling
from deft_jax.models.families.llama import Llama
from tests.support.tiny_model import CONFIG, AsciiTokenizer, tiny_model

BROKEN = ord("c")
"""Token whose embedding is not finite."""

SHORT = ("--max-new-tokens", "4", "--max-context", "32", "--seed", "2")


class Opened:
    """A network as `OpenedModel` gives it."""

    tokenizer = AsciiTokenizer()
    dtype = jnp.dtype("float32")

    def __init__(self, network: Llama):
        self.network, self.config = network, network.config
        self.is_loaded = False

    def with_context_length(self, context_length: int) -> "Opened":
        """Limit the sequences of this very object, so that a test can look at it."""
        self.config = self.config.with_context_length(context_length)
        self.network.config = self.config
        return self

    def outline(self) -> Llama:
        """Return shapes in place of the weights."""
        graph, state = nnx.split(self.network)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        return nnx.merge(graph, shapes)

    def load(self, progress) -> Llama:
        """Return the network."""
        self.is_loaded = True
        return self.network


def copy_of_tiny_model() -> Llama:
    """Return a network whose arrays and config are its own."""
    graph, state = nnx.split(tiny_model())
    return nnx.merge(graph, jax.tree.map(jnp.copy, state))


@pytest.fixture
def opened(monkeypatch) -> Opened:
    """Return the model that the command finds, whatever its options say."""
    opened = Opened(copy_of_tiny_model())
    monkeypatch.setattr(load, "open_model", lambda source, dtype: opened)
    monkeypatch.setattr(compilation_cache, "enable_compilation_cache", lambda: None)
    return opened


@pytest.fixture
def broken_model(monkeypatch) -> None:
    """Return a model whose numbers are NaN behind every prompt with `BROKEN` in it."""
    network = copy_of_tiny_model()
    assert network.embedding is not None
    network.embedding[...] = network.embedding[...].at[BROKEN].set(math.nan)
    monkeypatch.setattr(generate, "open_chosen", lambda options: Opened(network))


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--prompt", "a", "--n", "1000000000"), "GiB free; lower n"),
        (("--prompt", "a", "--page-size", "1000000000"), "or the page size"),
        (("--prompt", "a" * 128), "context of 128 leaves no room for an answer"),
        (("--prompt", "a", "--max-context", "129"), "model's context of 128 tokens"),
        (("--prompt", "a" * 9, "--max-context", "10"), "is above --max-context 10"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(
    opened, capsys, wrong, message
):
    assert main(["generate", *wrong, "--max-new-tokens", "4"]) == 2
    assert_one_error(capsys, message)
    assert not opened.is_loaded


def assert_one_error(capsys, message: str) -> None:
    """Check that stderr has one line, an error that contains the message."""
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("deft-jax: error: ") and message in line


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--dtype", "float32"), "dtype float32 is none of bfloat16, float16"),
        (("--page-size", "24"), "does not take these arrays"),
    ],
)
def test_arrays_that_the_kernels_do_not_take_are_one_line(
    opened, monkeypatch, capsys, option, message
):
    for module in (attention_device, cli_device):
        monkeypatch.setattr(module, "compute_capability", lambda device=None: (9, 0))
    kernels = ("--implementation", "mosaic_gpu")
    assert main(["generate", "--prompt", "a", *kernels, *option]) == 2
    assert_one_error(capsys, message)
    assert not opened.is_loaded


@pytest.mark.parametrize(("context", "is_long"), [("32", False), ("100", True)])
def test_max_context_is_the_context_of_the_model(opened, context, is_long):
    """A model with LongRoPE takes the factors for that length."""
    scaling = LongRopeScaling(
        short_factors=(1.0,) * (CONFIG.head_dim // 2),
        long_factors=(2.0,) * (CONFIG.head_dim // 2),
        attention_factor=1.0,
        original_context_length=64,
        is_long=True,
    )
    opened.config = dataclasses.replace(CONFIG, rope_scaling=scaling)
    limit = ("--max-new-tokens", "4", "--max-context", context)
    assert main(["generate", "--prompt", "abd", "--n", "1", *limit]) == 0
    assert opened.is_loaded and opened.network.config == opened.config
    assert opened.config.context_length == int(context)
    chosen = opened.config.rope_scaling
    assert isinstance(chosen, LongRopeScaling) and chosen.is_long == is_long
