"""What branches refuse, in one line, and what they keep and let go."""

import gc

import pytest

from deft_jax import BestOfN, DeftError, Sampling, Session
from tests.support.counted_engine import CountedEngine
from tests.support.tiny_model import CONFIG, sharing_engine

PROMPT = "The quick brown fox"
SAMPLING = Sampling(temperature=0.9, max_new_tokens=4, ignore_eos=True)
OPERATIONS = {
    "fork": lambda branch: branch.fork(),
    "extend": lambda branch: branch.extend("a"),
    "generate": lambda branch: branch.generate(),
    "strategy": lambda branch: branch.generate(strategy=BestOfN(2)),
    "score": lambda branch: branch.score(["a"]),
    "choose": lambda branch: branch.choose(["a"]),
    "logprobs": lambda branch: branch.logprobs(),
}


@pytest.fixture
def counted() -> CountedEngine:
    return CountedEngine(sharing_engine())


@pytest.fixture
def session(counted: CountedEngine):
    with Session(counted, sampling=SAMPLING) as session:
        yield session
    assert counted.num_pinned == 0


def raises(message: str, call, *args, **kwargs) -> None:
    with pytest.raises(DeftError, match=message) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_dropped_branch_can_still_be_looked_at(session: Session, name: str):
    branch = session.open(PROMPT).fork().extend("ab")
    fork = branch.fork()
    group = session.group([branch])
    branch.drop()
    branch.drop()
    for subject in (branch, group):
        raises("the branch was dropped; fork one", OPERATIONS[name], subject)
    assert (branch.text, branch.path_text()) == ("ab", PROMPT + "ab")
    assert repr(branch) == "Branch('ab', 2 tokens, dropped)"
    assert fork.extend("c").path_text() == PROMPT + "abc"


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_closed_session(counted: CountedEngine, name: str):
    session = Session(counted)
    root = session.open(PROMPT)
    group = root.fork(2)
    assert counted.num_pinned == 1
    session.close()
    session.close()
    assert counted.num_pinned == 0
    for subject in (root, group):
        raises("the session is closed; open another", OPERATIONS[name], subject)
    for call in (session.open, session.score, session.submit):
        raises("the session is closed; open another", call, PROMPT)
    group.drop()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, b: b.fork(0), "n must be from 1 to 2147483647, got 0"),
        (lambda s, b: b.fork(1.5), "n must be an integer, got 1.5"),
        (lambda s, b: b.fork(2).fork(-1), "n must be from 1 to"),
        (lambda s, b: b.extend(""), "at least 1 token, got ''"),
        (lambda s, b: b.extend([CONFIG.vocab_size]), "token ids from 0 to 127, got"),
        (lambda s, b: b.extend("a" * 200), "context of 128"),
        (lambda s, b: b.fork(2).extend(["a", "b", "c"]), "one for each of 2 .* got 3"),
        (lambda s, b: b.fork(2).extend(3), "text or integer token ids, got 3"),
        (lambda s, b: b.generate(0.7), "sampling must be a deft_jax.Sampling, got 0.7"),
        (lambda s, b: b.generate(max_new_tokens=0), "max_new_tokens must be from 1"),
        (lambda s, b: b.generate(stop=3), "stop"),
        (lambda s, b: b.generate(strategy="beam"), "strategy must be an object"),
        (lambda s, b: b.score(["a", ""]), "at least 1 token"),
        (lambda s, b: b.choose([]), "at least 1 text to choose from"),
        (lambda s, b: b.logprobs(0), "top must be from 1 to"),
        (lambda s, b: b.logprobs(21), "top must be from 0 to 20, got 21"),
        (lambda s, b: b.fork(3).keep([1, 2], 1), "a score for each of 3, got 2"),
        (lambda s, b: b.fork(3).keep([1, 2, 3], -1), "n must be from 0 to"),
        (lambda s, b: s.open(""), "has no tokens"),
        (lambda s, b: s.open([128]), "the vocabulary has 0 to 127"),
        (lambda s, b: s.open("a" * 128), "no room for an answer"),
        (lambda s, b: s.open_all([]), "at least 1 prompt"),
        (lambda s, b: s.group([b, b]), "a branch is twice in the group"),
    ],
)
def test_arguments_that_cannot_be_used(session: Session, call, message: str):
    branch = session.open(PROMPT)
    raises(message, call, session, branch)
    assert branch.path_text() == PROMPT
    assert len(branch.generate().tokens) == 4


def test_a_branch_of_another_session(session: Session):
    with Session(sharing_engine()) as other:
        raises("branches of this session", session.group, [other.open(PROMPT)])
    raises(
        "sampling must be a deft_jax.Sampling", Session, sharing_engine(), sampling=1
    )


def test_a_group_moves_as_a_whole_or_not_at_all(
    session: Session, counted: CountedEngine
):
    group = session.open(PROMPT).fork(3).extend(["a", "b", "c"])
    pinned = counted.num_pinned
    raises("context of 128", group.extend, ["d", "e" * 200, "f"])
    raises("at least 1 token", group.extend, ["d", "e", ""])
    assert group.text == ["a", "b", "c"]
    group[1].drop()
    raises("the branch was dropped", group.generate)
    assert group.text == ["a", "b", "c"] and counted.num_pinned == pinned - 1
    assert len(group[::2].generate()) == 2


def test_an_empty_group(session: Session):
    group = session.group([])
    assert len(group) == 0 and group.text == []
    assert group.extend("a").generate().fork(2).keep([], 3).choose(["a"]) == []
    assert list(group.generate(strategy=BestOfN(2))) == []


def test_groups_are_sequences(session: Session):
    group = session.open(PROMPT).fork(3).extend(["a", "b", "c"])
    assert group[1].text == "b" and group[-1] is list(group)[2]
    assert group[1:].text == ["b", "c"]
    assert group[::-1].path_text() == [PROMPT + x for x in "cba"]
    assert repr(group[:1]) == "BranchGroup([Branch('a', 1 tokens)])"
    assert group.extend([ord("x")]).text == ["ax", "bx", "cx"]
    assert group.extend([[ord("y")], "z", (ord("v"),)]).text == ["axy", "bxz", "cxv"]
    assert group.tokens == [branch.tokens for branch in group]
    assert group.logprob == [branch.logprob for branch in group]


def test_requests_of_a_group_begin_before_any_is_waited_for(
    session: Session, counted: CountedEngine
):
    group = session.open(PROMPT).fork(3)
    for what, call in [
        ("read", lambda: group.extend("ab")),
        ("submit", lambda: group.generate()),
        ("submit", lambda: group.generate(strategy=BestOfN(2))),
        ("read", lambda: group.logprobs()),
    ]:
        counted.log.clear()
        call()
        assert counted.log == [what] * 3 + ["wait"] * 3
    counted.log.clear()
    group.score(["a", "b"])
    assert counted.log == ["read"] * 6 + ["wait"] * 6


def test_pins_follow_the_branches(session: Session, counted: CountedEngine):
    root = session.open(PROMPT)
    forks = root.fork(3)
    assert counted.num_pinned == 1
    forks.generate()
    assert counted.num_pinned == 4
    forks.extend("ab")
    assert counted.num_pinned == 4
    leaves = root.generate(strategy=BestOfN(3))
    assert counted.num_pinned == 5
    leaves[:2].drop()
    assert counted.num_pinned == 5
    leaves[2].drop()
    assert counted.num_pinned == 4
    forks.keep([1, 0, 2], 1)
    assert counted.num_pinned == 2
    for ask in (lambda: root.score(["a"]), root.logprobs):
        ask()
    session.score(PROMPT)
    assert counted.num_pinned == 2


def test_branches_that_nobody_refers_to_are_let_go(
    session: Session, counted: CountedEngine
):
    root = session.open(PROMPT)
    thoughts = root.fork(2).generate()
    thoughts.fork().extend("? ").choose(["a", "b"])
    gc.collect()
    root.fork()
    assert counted.num_pinned == 3
    del thoughts
    gc.collect()
    root.logprobs()
    assert counted.num_pinned == 1


def test_a_request_of_the_session_is_that_of_the_engine(session: Session):
    seen = []
    handle = session.submit(PROMPT, BestOfN(2), SAMPLING, key=7, on_token=seen.append)
    tree = handle.result(300)
    again = session.submit(PROMPT, BestOfN(2), key=7).result(300)
    assert [x.tokens for x in tree.leaves()] == [x.tokens for x in again.leaves()]
    assert len(seen) == 8 and handle.done()
