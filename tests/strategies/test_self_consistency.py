"""Answers and votes over trees made by hand."""

import pytest

from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TreeNode
from deft_jax.strategies.parallel import SelfConsistency, normalise_answer


def tree_of(*texts, logprobs=None):
    """Return a prompt with one branch per text."""
    root = TreeNode(id=0, parent=None, tokens=(1,), text="What is 6 * 7? 99")
    logprobs = logprobs or [-1.0] * len(texts)
    branches = [
        TreeNode(id=i, parent=0, tokens=(2,), text=text, logprobs=(logprob,))
        for i, (text, logprob) in enumerate(zip(texts, logprobs, strict=True), start=1)
    ]
    return GenerationTree(
        request=0, prompt=root.text, nodes=(root, *branches), stats=Status(phase="done")
    )


def conclude(*texts, logprobs=None, **fields):
    strategy = SelfConsistency(len(texts), **fields)
    return strategy.conclude(tree_of(*texts, logprobs=logprobs))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "42"),
        ("First 6, then 7.\nSo 42\n", "42"),
        ("It costs $1,234,567 in all", "1234567"),
        ("about -3.50 degrees", "-3.50"),
        ("3.14", "3.14"),
        ("no digits", None),
        ("", None),
        ("I compute 17+25, when asked", "25"),
        ("between 3-5", "5"),
        ("it fell to -5.", "-5"),
        ("about 1,250, I think", "1250"),
    ],
)
def test_the_default_answer_is_the_last_number(text, answer):
    assert conclude(text).leaves()[0].answer == answer


@pytest.mark.parametrize(
    ("pattern", "answer"),
    [
        (r"answer: (\w+)", "yes"),
        (r"answer: \w+", "answer: yes"),
        (r"(?i)ANSWER: (\w)\w+", "y"),
        (r"(no|maybe)", None),
        (r"answer:( *)", None),
        (r"sure(.*)\.", "answer: yes"),
        (r"answer: (no)|answer", None),
    ],
)
def test_a_pattern_finds_its_first_group_over_all_lines(pattern, answer):
    leaf = conclude("I am sure\nanswer: YES.", pattern=pattern).leaves()[0]
    assert leaf.answer == answer


def test_the_majority_wins_over_case_space_and_commas():
    tree = conclude("1,000", " 1000 ", "7", "none", "1000.", "7")
    assert (tree.answer, tree.agreement) == ("1000", 3 / 5)
    assert tree.votes == {"1000": 3, "7": 2}
    assert list(tree.votes) == ["1000", "7"]


def test_best_is_the_likeliest_branch_of_the_majority():
    tree = conclude("7", "42", "42", logprobs=[-0.1, -3.0, -2.0])
    assert tree.answer == "42"
    assert tree.best().id == 3


def test_a_tie_goes_to_the_answer_that_came_first():
    assert conclude("5", "6", "6", "5").answer == "5"


def test_without_any_answer_there_is_no_vote():
    tree = conclude("none", "nothing", logprobs=[-2.0, -1.0])
    assert (tree.answer, tree.agreement, tree.votes) == (None, None, {})
    assert tree.best().id == 2


def test_the_whole_path_is_searched_but_not_the_prompt():
    nodes = (
        *tree_of("So 41").nodes,
        TreeNode(id=2, parent=1, tokens=(3,), text="7 it is", logprobs=(-1.0,)),
        TreeNode(id=3, parent=0, tokens=(3,), text="who knows", logprobs=(-1.0,)),
    )
    tree = GenerationTree(request=0, prompt="", nodes=nodes, stats=Status(phase="done"))
    concluded = SelfConsistency(2).conclude(tree)
    assert [node.answer for node in concluded.nodes] == [None, None, "417", None]


def test_a_prompt_without_branches_gives_no_answer():
    tree = SelfConsistency(1).conclude(tree_of())
    assert (tree.answer, tree.nodes[0].answer) == (None, None)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("1,234", "1234"),
        (" Paris ", "paris"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("a, b", "a, b"),
        ("  ", None),
        (None, None),
    ],
)
def test_answers_are_compared_in_one_form(text, form):
    assert normalise_answer(text) == form


def test_a_large_tree_is_concluded_in_linear_time(monkeypatch):
    """Leaves are looked for a few times, not once per node."""
    calls = []
    leaves = GenerationTree.leaves

    def counting(tree):
        calls.append(1)
        return leaves(tree)

    monkeypatch.setattr(GenerationTree, "leaves", counting)
    tree = conclude(*(str(number % 7) for number in range(500)))
    assert tree.votes["0"] == 72
    assert len(calls) < 5
