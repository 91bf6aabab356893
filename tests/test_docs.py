"""The examples of the documentation run as they stand."""

import re
from pathlib import Path

import pytest

from deft_jax import Engine, Sampling
from tests.tiny_model import tiny_engine

ROOT = Path(__file__).parents[1]


def run_examples(name: str) -> dict:
    """Runs the Python blocks of a page one after the other; returns their names."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S
    )
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, name, "exec"), names)
    return names


@pytest.mark.permissive_promotion
def test_the_op_in_a_loop_of_your_own(capsys: pytest.CaptureFixture[str]):
    names = run_examples("docs/tree-attention.md")
    assert names["out"].shape == (8, 4, 64)
    assert capsys.readouterr().out.count("True") == 3


def test_a_strategy_of_your_own():
    strategy = run_examples("docs/strategies.md")["DiverseOpenings"](4)
    tiny = tiny_engine()
    engine = Engine(tiny.model, tiny.tokenizer)
    sampling = Sampling(temperature=0.0, max_new_tokens=4, ignore_eos=True)
    [tree] = engine.generate("Hello", strategy, sampling)
    openings = [leaf.tokens[0] for leaf in tree.leaves()]
    assert len(set(openings)) == 4
    first = [leaf.logprobs[0] for leaf in tree.leaves()]
    assert first == sorted(first, reverse=True)


@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.permissive_promotion
def test_the_readme(capsys: pytest.CaptureFixture[str]):
    tree = run_examples("README.md")["tree"]
    assert len(tree.leaves()) == 8
    shown = capsys.readouterr().out
    assert "KV reads saved: " in shown
    assert tree.path_text(tree.best()) in shown
