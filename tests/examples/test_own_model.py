"""The example of one's own model: its trees are what the network computes alone."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from deft_jax import BestOfN, Engine, GenerationTree, Sampling

PATH = Path(__file__).parents[2] / "examples" / "own_model.py"


@pytest.fixture(scope="module")
def example() -> dict:
    """Run the file without its `main`."""
    return runpy.run_path(str(PATH), run_name="own_model")


def numpy_logprobs(model, tokens: list[int]) -> np.ndarray:
    """Return [T, V] log-probabilities after each of T tokens, in float64."""
    config = model.config
    weights = {k: np.asarray(w, np.float64) for k, w in model.weights.items()}

    def normed(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=1, keepdims=True)
        return x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-5)

    x = weights["embedding"][tokens] + weights["position"][: len(tokens)]
    for index in range(config.num_layers):
        heads = normed(x) @ weights[f"{index}.qkv"]
        heads = heads.reshape(len(x), 3, config.num_q_heads, config.head_dim)
        q, k, v = np.moveaxis(heads, 1, 0)
        scores = np.einsum("qhd,thd->hqt", q, k) / np.sqrt(config.head_dim)
        shares = np.exp(scores) * np.tri(len(x))
        shares /= shares.sum(axis=2, keepdims=True)
        mixed = np.einsum("hqt,thd->qhd", shares, v).reshape(len(x), -1)
        x = x + mixed @ weights[f"{index}.out"]
        up = normed(x) @ weights[f"{index}.up"]
        tanh = np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3))
        x = x + (up * (1 + tanh) / 2) @ weights[f"{index}.down"]
    logits = normed(x) @ weights["head"]
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.fixture(scope="module")
def tree(example: dict) -> tuple[GenerationTree, object]:
    """Decode four branches with weights of another seed."""
    model = example["GPT"].random(example["GPTConfig"](), seed=3)
    engine = Engine(model, example["CharacterTokenizer"]())
    sampling = Sampling(temperature=1.0, max_new_tokens=20, seed=1)
    (tree,) = engine.generate(example["PROMPT"], BestOfN(4), sampling)
    return tree, model


def test_every_branch_has_the_probabilities_of_the_network(example: dict, tree):
    tree, model = tree
    prompt = example["CharacterTokenizer"]().encode(example["PROMPT"])
    assert len({tree.path_text(leaf) for leaf in tree.leaves()}) == 4
    for leaf in tree.leaves():
        path = tree.path(leaf)[1:]
        tokens = [token for node in path for token in node.tokens]
        given = [logprob for node in path for logprob in node.logprobs]
        rows = numpy_logprobs(model, prompt + tokens[:-1])[len(prompt) - 1 :]
        expected = rows[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(given, expected, rtol=0, atol=2e-4)


def test_the_example_prints_its_tree(example: dict, capsys: pytest.CaptureFixture):
    with jax.numpy_dtype_promotion("standard"):
        example["main"]()
    printed = capsys.readouterr().out
    assert "stored once for 4" in printed
