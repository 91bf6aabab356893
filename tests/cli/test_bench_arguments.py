"""The options of `deft-jax bench`: defaults with and without --quick, and errors."""

import argparse

import pytest

from deft_jax.accounting.methods import METHODS
from deft_jax.bench.command import choose_workloads
from deft_jax.bench.methods.choice import make_method
from deft_jax.bench.report.data import METHODS as REPORTED
from deft_jax.bench.trees.draft_templates import DRAFT_COUNTS, speculative
from deft_jax.bench.trees.templates import load_workload
from deft_jax.cli.arguments import build_parser
from deft_jax.cli.bench_arguments import DRAFT_METHODS, settle
from deft_jax.cli.main import main
from deft_jax.errors import DeftError


def parse(*arguments: str) -> argparse.Namespace:
    return settle(build_parser().parse_args(["bench", *arguments]))


def names(*arguments: str) -> list[str]:
    return [workload.name for workload in choose_workloads(parse(*arguments))]


def test_all_methods_are_compared_and_named_in_reports():
    assert tuple(parse("few-shot").methods) == METHODS == tuple(REPORTED)
    assert tuple(parse("speculative").methods) == DRAFT_METHODS
    assert set(METHODS) - set(DRAFT_METHODS) == {"flash_decoding"}
    for name in METHODS:
        make_method(name)


def test_methods_of_drafts_are_those_that_take_them():
    depth = speculative(32).depth + 1
    for name in DRAFT_METHODS:
        make_method(name, draft_depth=depth)
    with pytest.raises(DeftError, match="not drafts"):
        make_method("flash_decoding", draft_depth=depth)


def test_defaults_are_those_of_the_paper():
    few_shot = parse("few-shot")
    assert (few_shot.prompt_tokens, few_shot.steps) == ([4000], 399)
    assert few_shot.widths == [20, 30, 50]
    assert parse("reasoning").trees == list(range(10))
    assert parse("reasoning").shorten == 1
    speculated = parse("speculative")
    assert (speculated.drafts, speculated.max_tokens) == (list(DRAFT_COUNTS), 6000)
    assert parse("attention").cases == "all"


def test_quick_changes_what_is_not_given():
    options = parse("few-shot", "--quick", "--widths", "2,3")
    assert (options.prompt_tokens, options.widths, options.steps) == ([64], [2, 3], 12)
    assert names("trees", "--quick") == ["trees: levels_1,2,4_64,6,6"]
    assert names("trees", "--quick", "--levels", "1,3;5,2") == ["trees: levels_1,3_5,2"]


def test_a_quick_run_has_one_tree():
    for workload in ("few-shot", "reasoning", "speculative", "trees"):
        [one] = choose_workloads(parse(workload, "--quick"))
        assert one.kind == workload


def test_trees_are_given_as_text():
    assert names("trees", "--levels", "1,2;9,3", "--searches", "2,3,0.5,0.5,7") == [
        "trees: levels_1,2_9,3",
        "trees: random_2_3_7",
    ]


def test_the_prompt_of_drafts_is_the_recorded_one():
    assert parse("speculative").prompt_tokens == speculative(32).prompt_tokens
    assert (
        load_workload("speculative")["prompt_tokens"] == speculative(32).prompt_tokens
    )
    assert DRAFT_COUNTS == tuple(map(int, load_workload("speculative")["trees"]))


def test_help_says_what_quick_is(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["bench", "few-shot", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "branches (default: 20,30,50; with --quick 4)" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: WORKLOAD"),
        (["nothing"], "invalid choice: 'nothing'"),
        (["few-shot", "--methods", "radix,magic"], "any of flash_decoding, radix"),
        (["speculative", "--methods", "flash_decoding"], "got 'flash_decoding'"),
        (["few-shot", "--widths", "4,0"], "an integer of at least 1, got '0'"),
        (["few-shot", "--steps", "1"], "an integer of at least 2, got '1'"),
        (["few-shot", "--shape", "gpt2"], "invalid choice: 'gpt2'"),
        (["few-shot", "--shape", "tiny", "--model", "m"], "not allowed with"),
        (["few-shot", "--implementation", "reference"], "invalid choice: 'reference'"),
        (["few-shot", "--output", ""], "at least 1 character"),
        (["reasoning", "--trees", "10"], "an integer from 0 to 9, got '10'"),
        (["reasoning", "--tasks", "chess"], "any of sorting, docmerge"),
    ],
)
def test_wrong_values_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(*arguments)
    check_error(exit.value.code, message, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trees"], "give a tree: --levels, --searches or --quick"),
        (["trees", "--levels", "1,2"], "as in '1,4,16;256,64,32', got '1,2'"),
        (["trees", "--levels", "2;5"], "the first of 1"),
        (["trees", "--levels", "1,2;5,0"], "has 0 tokens"),
        (["trees", "--searches", "0,3,0.5,0.5,1"], "got '0,3,0.5,0.5,1'"),
        (["trees", "--searches", "2,3,0.5,1.5,1"], "rate from 0 to 1"),
        (["trees", "--searches", "2,3"], "as in '4,6,0.5,0.3,0', got '2,3'"),
        (["speculative", "--drafts", "33"], "32, 64, 128, 256 tokens"),
        (["speculative", "--max-tokens", "1016"], "need at least 1 token"),
        (["attention", "--cases", "99"], "numbers below 47"),
        (["attention", "--cases", "0"], "from an NVIDIA GPU, got cpu"),
    ],
)
def test_wrong_trees_are_one_line(arguments, message, capsys, tmp_path):
    folder = tmp_path / "report"
    code = main(["bench", *arguments, "--output", str(folder)])
    check_error(code, message, capsys)
    assert not folder.exists()


def check_error(code, message, capsys) -> None:
    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    assert output.err.startswith("deft-jax: error: ")
    assert output.err.count("\n") == 1
    assert message in output.err
