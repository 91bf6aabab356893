import pytest

from deft_jax.attention.backend import IMPLEMENTATIONS
from deft_jax.capacity import DEFAULT_PAGE_SIZE, Capacity
from deft_jax.cli.arguments import DEFAULT_MODEL, build_parser
from deft_jax.cli.generate import _capacity, _sampling, _strategy
from deft_jax.errors import CapacityError
from deft_jax.models.checkpoints import checkpoint
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN, SelfConsistency


def parse(*arguments):
    return build_parser().parse_args(["generate", "--prompt", "p", *arguments])


class WordTokenizer:
    def encode(self, text):
        return text.split()


def test_defaults_are_those_of_the_library():
    assert _sampling(parse()) == Sampling()
    assert DEFAULT_MODEL == checkpoint.DEFAULT_MODEL


def test_every_implementation_can_be_chosen():
    for name in IMPLEMENTATIONS:
        assert parse("--implementation", name).implementation == name


def test_options_reach_the_sampling():
    options = parse(
        *("--max-new-tokens", "7", "--temperature", "0", "--top-k", "5"),
        *("--top-p", "0.9", "--min-p", "0.1", "--repetition-penalty", "1.2"),
        *("--seed", "3", "--stop", "a", "--stop", "b"),
    )
    assert _sampling(options) == Sampling(
        max_new_tokens=7,
        temperature=0.0,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        seed=3,
        stop=("a", "b"),
    )


def test_options_choose_the_strategy():
    assert _strategy(parse()) == BestOfN(4)
    voting = ("--strategy", "self-consistency", "--n", "3")
    assert _strategy(parse(*voting)) == SelfConsistency(3)
    assert _strategy(parse(*voting, "--answer-pattern", "x")) == SelfConsistency(3, "x")


def capacity(*arguments, prompts=("a b c",)):
    return _capacity(parse(*arguments), prompts, WordTokenizer(), BestOfN(4))


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
        (["--answer-pattern", "("], "expected a regular expression, got '('"),
        (["--stop", ""], "expected at least 1 character"),
        (["--prompt-file", "f"], "not allowed with argument --prompt"),
        (["--max-new", "3"], "unrecognized arguments"),
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
