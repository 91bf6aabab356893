import json

import pytest

from deft_jax.cli.main import main

pytestmark = pytest.mark.usefixtures("smollm2_path")


def test_report_is_for_people(capsys):
    assert main(["info"]) == 0
    report = capsys.readouterr().out
    assert "134,515,008" in report
    assert "8,192 tokens" in report


def test_json_has_the_numbers(capsys):
    assert main(["info", "--json", "--dtype", "bfloat16"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kv_bytes_per_token"] == 2 * 30 * 3 * 64 * 2
    assert facts["weight_bytes"] == 2 * facts["parameters"] == 2 * 134_515_008
    spare = facts["free_bytes"] - facts["weight_bytes"]
    assert facts["kv_capacity_tokens"] == spare // facts["kv_bytes_per_token"]


def test_unknown_model_is_one_line(capsys):
    assert main(["info", "--model", "nothing-like-it"]) == 2
    assert capsys.readouterr().err.startswith("deft-jax: error: nothing-like-it: ")
