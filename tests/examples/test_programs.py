"""The programs that people copy: they run, and do what they say."""

import asyncio
import runpy
import sys
from pathlib import Path

import pytest

from deft_jax import Engine
from tests.support.long_context import long_engine, use_long_engine

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["tree_of_thoughts", "best_first_program", "agent_loop"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return long_engine()


def load(name: str) -> dict:
    """Return the names of an example without running its `main`."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_short_and_prints_what_it_finds(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 60
    use_long_engine(monkeypatch)
    monkeypatch.setattr(sys, "argv", [name, "What is 2 * 3?"])
    runpy.run_path(str(path), run_name="__main__")
    assert "What is 2 * 3?" in capsys.readouterr().out


def test_a_chain_of_thoughts(engine: Engine):
    think = load("tree_of_thoughts")["think"]
    chain = think(engine, "Why?", depth=2, thoughts=3, width=2)
    lines = chain.split("\n")
    assert lines[0] == "Problem: Why?" and len(lines) == 4
    assert lines[1].startswith("Step 1:") and lines[2].startswith("Step 2:")
    assert lines[3].startswith("So the answer is")
    assert think(engine, "Why?", depth=2, thoughts=3, width=2) == chain


def test_best_first_goes_on_from_the_best_of_all(engine: Engine):
    found = load("best_first_program")["search"](
        engine, "Rest.", rounds=3, at_once=2, children=3
    )
    # 1 branch, then 2 of 3, then 2 of 7 were taken from the queue: 3 + 6 + 6 made.
    assert len(found) == 3 - 2 + 6 - 2 + 6
    scores = [score for score, _ in found]
    assert scores == sorted(scores) and len(set(scores)) > 1
    assert all(text.startswith("Task: Rest.\nPlan:\n-") for _, text in found)
    assert {text.count("\n-") for _, text in found} <= {1, 2, 3}


def test_the_tool():
    calculate = load("agent_loop")["calculate"]
    assert [calculate(" 17 * 23"), calculate("2.5 + 4"), calculate("3 - 5")] == [
        "391",
        "6.5",
        "-2",
    ]
    for text in ("", "17 / 0", "__import__('os')", "1 + 2 + 3"):
        assert calculate(text).startswith("error, write two numbers")


def test_agents_talk_at_the_same_time_as_they_do_alone(engine: Engine):
    answer_all = load("agent_loop")["answer_all"]
    questions = ["What is 17 * 23?", "Who?", "What is 2.5 + 4?"]
    talks = asyncio.run(answer_all(engine, questions))
    for question, talk in zip(questions, talks, strict=True):
        assert talk.startswith(f"Question: {question}\n")
        turns = talk.split("\n")[1:]
        assert turns[0].startswith(("calculate:", "answer:"))
        for turn, result in zip(turns, turns[1:], strict=False):
            assert turn.startswith("calculate:") == result.startswith("result: ")
        assert asyncio.run(answer_all(engine, [question])) == [talk]
