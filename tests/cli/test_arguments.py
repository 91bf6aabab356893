import argparse
import re
import types
from importlib.metadata import version
from typing import Any

import pytest

from deft_jax.attention.backend import IMPLEMENTATIONS
from deft_jax.capacity import DEFAULT_PAGE_SIZE, Capacity
from deft_jax.cli.arguments import build_parser
from deft_jax.cli.device_options import DEFAULT_MODEL
from deft_jax.cli.generate import _capacity, _check_options
from deft_jax.cli.generate_arguments import add_generate
from deft_jax.cli.opening import limit_context
from deft_jax.cli.sampling_options import sampling_of
from deft_jax.cli.strategies import STRATEGIES
from deft_jax.errors import CapacityError, DeftError
from deft_jax.models.checkpoints import checkpoint
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN, SelfConsistency


def parse(*arguments):
    return build_parser().parse_args(["generate", "--prompt", "p", *arguments])


class WordTokenizer:
    def encode(self, text):
        return text.split()


def test_defaults_are_those_of_the_library():
    assert sampling_of(parse()) == Sampling()
    assert DEFAULT_MODEL == checkpoint.DEFAULT_MODEL


def test_every_implementation_can_be_chosen():
    for name in IMPLEMENTATIONS:
        assert parse("--implementation", name).implementation == name


def test_options_reach_the_sampling():
    options = parse(
        *("--max-new-tokens", "7", "--temperature", "0", "--top-k", "5"),
        *("--top-p", "0.9", "--min-p", "0.1", "--repetition-penalty", "1.2"),
        *("--presence-penalty", "-0.5", "--frequency-penalty", "1.5"),
        *("--seed", "3", "--stop", "a", "--stop", "b"),
        *("--stop-token-id", "7", "--stop-token-id", "0", "--logprobs", "20"),
    )
    assert sampling_of(options) == Sampling(
        max_new_tokens=7,
        temperature=0.0,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-0.5,
        frequency_penalty=1.5,
        seed=3,
        stop=("a", "b"),
        stop_token_ids=(7, 0),
        logprobs=20,
    )


def strategy(*arguments):
    options = parse(*arguments)
    return STRATEGIES[options.strategy](options)


def test_options_choose_the_strategy():
    assert strategy() == BestOfN(4)
    voting = ("--strategy", "self-consistency", "--n", "3")
    assert strategy(*voting) == SelfConsistency(3)
    assert strategy(*voting, "--answer-pattern", "x") == SelfConsistency(3, "x")


def test_every_strategy_of_the_table_can_be_chosen():
    for name, make in STRATEGIES.items():
        options = parse("--strategy", name)
        assert make(options).rows == options.n == 4


def capacity(*arguments, prompts=("a b c",)):
    config = types.SimpleNamespace(context_length=2048)
    opened: Any = types.SimpleNamespace(config=config, tokenizer=WordTokenizer())
    return _capacity(parse(*arguments), prompts, opened, BestOfN(4))


def test_engine_chooses_the_capacity_by_default():
    assert capacity() is None


def test_page_size_reaches_the_capacity():
    expected = Capacity.for_requests([3], 256, 4, 5, 16)
    assert capacity("--page-size", "16") == expected


def test_prompts_within_the_context_share_a_capacity():
    limit = ("--max-context", "512")
    short, long = capacity(*limit), capacity(*limit, prompts=("a " * 200,))
    assert short is not None and short == long
    assert short.page_size == DEFAULT_PAGE_SIZE


def test_longer_prompt_than_the_context_names_the_numbers():
    with pytest.raises(CapacityError, match=r"3 tokens.* 256 .*above .* 258"):
        capacity("--max-context", "258")


def test_context_above_that_of_the_model_names_the_numbers():
    limited = []
    config = types.SimpleNamespace(context_length=2048)
    opened = types.SimpleNamespace(config=config, with_context_length=limited.append)
    with pytest.raises(CapacityError, match=r"99999999 .* context of 2048 tokens"):
        limit_context(opened, 99999999)
    limit_context(opened, 2048)
    assert limited == [2048]
    assert limit_context(opened, None) is opened


def test_values_of_template_arguments_are_json_or_text():
    options = parse(
        *("--template-arg", "enable_thinking=false", "--template-arg", "n=3"),
        *("--template-arg", 'list=[1, "a"]', "--template-arg", "name=a=b"),
        *("--template-arg", 'text="true"', "--template-arg", "empty="),
    )
    assert dict(options.template_arg) == {
        "enable_thinking": False,
        "n": 3,
        "list": [1, "a"],
        "name": "a=b",
        "text": "true",
        "empty": "",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "a"], "--system needs --chat"),
        (["--template-arg", "a=1"], "--template-arg needs --chat"),
        (["--tools", "f.json"], "--tools needs --chat"),
        (
            ["--special", "--chat"],
            "--special is for prompts that are already formatted",
        ),
        (["--answer-pattern", "x"], "needs --strategy self-consistency"),
        (["--logprobs", "1"], "--logprobs needs --json"),
        (
            ["--output", "/no/such/f"],
            "--output /no/such/f: there is no folder /no/such",
        ),
        (["--output", "/tmp"], "--output /tmp: expected a file, got a folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(DeftError, match=message):
        _check_options(parse(*arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--temperature", "0"], "--temperature 0 takes .* the 4 branches"),
        (["--top-k", "1", "--n", "2"], "--top-k 1 takes .* the 2 branches"),
        (["--temperature", "0", "--n", "1"], None),
        ([], None),
    ],
)
def test_equal_branches_are_announced(arguments, said, capsys):
    _check_options(parse(*arguments))
    output = capsys.readouterr().err
    assert re.search(said, output) if said else output == ""


def test_help_tells_of_control_tokens_and_of_slow_dtypes():
    parser = argparse.ArgumentParser()
    add_generate(parser)
    text = " ".join(parser.format_help().split())
    assert "read control tokens such as <|im_end|> in the prompt" in text
    assert "float32 on a CPU, where the others are slower for few branches" in text


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as exit:
        build_parser().parse_args(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"deft-jax {version('deft-jax')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "0"], "--n: expected an integer of at least 1, got '0'"),
        (["--n", "two"], "--n: expected an integer of at least 1, got 'two'"),
        (["--max-new-tokens", "0"], "an integer of at least 1, got '0'"),
        (["--seed", "-1"], "an integer from 0 to 4294967295, got '-1'"),
        (["--temperature", "nan"], "a number of at least 0, got 'nan'"),
        (["--temperature", "inf"], "a number of at least 0, got 'inf'"),
        (["--top-p", "0"], "a number above 0 and up to 1, got '0'"),
        (["--min-p", "1.5"], "a number from 0 to 1, got '1.5'"),
        (["--repetition-penalty", "0"], "a number above 0, got '0'"),
        (["--presence-penalty", "2.1"], "a number from -2 to 2, got '2.1'"),
        (["--frequency-penalty", "nan"], "a number from -2 to 2, got 'nan'"),
        (["--stop-token-id", "-1"], "an integer of at least 0, got '-1'"),
        (["--logprobs", "21"], "an integer from 0 to 20, got '21'"),
        (["--answer-pattern", "("], "expected a regular expression, got '('"),
        (["--stop", ""], "expected at least 1 character"),
        (["--prompt-file", "f"], "not allowed with argument --prompt"),
        (["--max-new", "3"], "unrecognized arguments"),
        (["--template-arg", "a"], "expected KEY=VALUE, such as"),
        (["--template-arg", "a b=1"], "expected KEY=VALUE, such as"),
        (["--output", ""], "expected at least 1 character"),
        (["--strategy", "best"], "invalid choice: 'best'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_wrong_values_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(*arguments)
    output = capsys.readouterr()
    assert exit.value.code == 2
    assert output.out == ""
    assert output.err.startswith("deft-jax: error: ")
    assert output.err.count("\n") == 1
    assert message in output.err
