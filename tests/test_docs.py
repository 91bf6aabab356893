"""The examples of the documentation run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

import deft_jax
from deft_jax import Engine, Sampling
from tests.support.long_context import use_long_engine
from tests.support.tiny_model import EOS, tiny_engine
from tests.support.tolerances import TOLERANCE, row_errors

ROOT = Path(__file__).parents[1]


def run_examples(name: str) -> dict:
    """Run the Python blocks of a page one after the other; return their names."""
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
    check_plain_arrays(names)


def check_plain_arrays(names: dict) -> None:
    """Assert that each query of the page's own tree sees prompt and branch alone."""
    k, v = (
        np.asarray(names[name], np.float32).transpose(0, 2, 1, 3).repeat(2, axis=2)
        for name in ("k_pages", "v_pages")
    )
    for query, (page, tokens) in enumerate([(1, 4), (2, 7)]):
        places = ([3, 5, page], [16, 4, tokens])
        path_k, path_v = (
            np.concatenate([pool[page, :n] for page, n in zip(*places, strict=True)])
            for pool in (k, v)
        )
        q = np.asarray(names["q"][query], np.float32)
        weight = np.exp(np.einsum("hd,thd->th", q, path_k) / 8)
        expected = np.einsum("th,thd->hd", weight / weight.sum(axis=0), path_v)
        actual = np.asarray(names["plain"][query], np.float32)
        assert row_errors(actual, expected).max() < TOLERANCE["bfloat16"]


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
    sampling = Sampling(temperature=0.9, max_new_tokens=24, seed=2)
    trees = engine.generate(["Hello", "x", "12345678"], strategy, sampling)
    leaves = [leaf for tree in trees for leaf in tree.leaves()]
    assert {"stop", "length"} == {leaf.finish_reason for leaf in leaves}
    for leaf in leaves:
        assert not set(leaf.tokens[:-1]) & set(EOS)
        ends = leaf.tokens[-1] in EOS
        assert leaf.finish_reason == ("stop" if ends else "length")
        assert ends or len(leaf.tokens) == 24


def test_programs_over_branches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    use_long_engine(monkeypatch)
    names = run_examples("docs/programs.md")
    assert capsys.readouterr().out.count("Problem: how do I get a cat") == 2
    assert names["draft"].text != names["again"].text
    assert names["draft"].path_text().startswith("The capital of France is")
    assert len(names["texts"]) == 2 and len(names["replies"]) == 3
    questions = names["questions"]
    assert any(f"Q: {q}" in names["best"].path_text() for q in questions)
    for name in ("tree_of_thoughts", "best_first_program", "agent_loop"):
        assert f"examples/{name}.py" in (ROOT / "docs/programs.md").read_text()
        assert (ROOT / "examples" / f"{name}.py").exists()


def test_the_options_of_sampling():
    sampling = run_examples("docs/api/sampling.md")["sampling"]
    assert isinstance(sampling, Sampling) and sampling.logprobs == 5


def test_the_strategies_to_copy_are_the_ones_that_are_tested():
    for name in ("beam_search", "best_first"):
        assert f"examples/{name}.py" in (ROOT / "docs/strategies.md").read_text()
        assert (ROOT / "examples" / f"{name}.py").exists()


def test_the_api_reference_has_every_public_name_and_package():
    page = (ROOT / "docs" / "api" / "index.md").read_text()
    linked = re.findall(r"^\| \[`(\w+)`\]\[deft_jax\.[\w.]+\.\1\] \|", page, re.M)
    assert sorted(linked) == sorted(deft_jax.__all__)
    documented = {
        name
        for file in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: deft_jax\.(\w+)$", file.read_text(), re.M)
    }
    packages = {file.parent.name for file in (ROOT / "deft_jax").glob("*/__init__.py")}
    assert packages - documented == {"cli"}


@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.permissive_promotion
def test_the_readme(capsys: pytest.CaptureFixture[str]):
    tree = run_examples("README.md")["tree"]
    assert len(tree.leaves()) == 8
    shown = capsys.readouterr().out
    assert "KV reads saved: " in shown
    assert tree.path_text(tree.best()) in shown
