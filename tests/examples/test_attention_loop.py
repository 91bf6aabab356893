"""The example that people copy runs, and says what it found."""

import ast
import re
import runpy
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "examples" / "attention_loop.py"


@pytest.mark.permissive_promotion
def test_each_branch_equals_its_sequence(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(PATH), run_name="__main__")
    shown = capsys.readouterr().out
    errors = [float(x) for x in re.findall(r"relative error (\S+)", shown)]
    assert len(errors) == 4 and max(errors) < 1e-3
    tokens = [ast.literal_eval(x) for x in re.findall(r": (\[.*?\]),", shown)]
    assert tokens[0][:4] == tokens[1][:4] and tokens[0] != tokens[1]
    [stored, apart] = map(
        int, re.findall(r"(\d+) (?:tokens stored|as separate)", shown)
    )
    assert stored < apart
