"""Stop strings against a search at every character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.engine.stop_strings import StopMatcher
from deft_jax.errors import DeftError

letters = st.text("ab\n", max_size=12)
chunks = st.lists(letters, max_size=5)
stop_strings = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3).map(tuple)


def first_stop(text, stops):
    """Return where the stop that ends first begins; of several the longest."""
    for end in range(1, len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return min(begins)
    return None


@given(chunks=chunks, stops=stop_strings)
def test_text_up_to_the_first_stop_is_shown(chunks, stops):
    matcher = StopMatcher(stops)
    shown = "".join(map(matcher.push, chunks)) + matcher.flush()
    text = "".join(chunks)
    assert matcher.stop_at == first_stop(text, stops)
    assert shown == text[: matcher.stop_at]


@given(chunks=chunks, stops=stop_strings)
def test_only_the_beginning_of_a_stop_is_held_back(chunks, stops):
    matcher = StopMatcher(stops)
    text = shown = ""
    for chunk in chunks:
        text += chunk
        shown += matcher.push(chunk)
        if matcher.stop_at is not None:
            break
        ends = [text[i:] for i in range(len(text) + 1)]
        held = next(e for e in ends if not e or any(s.startswith(e) for s in stops))
        assert shown + held == text


@given(parent=letters, branches=st.lists(letters, max_size=3), stops=stop_strings)
def test_branches_go_on_from_their_parent(parent, branches, stops):
    matcher = StopMatcher(stops)
    shown = matcher.push(parent)
    for branch in branches:
        copy = matcher.copy()
        text = shown + copy.push(branch) + copy.flush()
        assert copy.stop_at == first_stop(parent + branch, stops)
        assert text == (parent + branch)[: copy.stop_at]


def test_held_text_is_released_when_it_cannot_become_a_stop():
    matcher = StopMatcher(("User:",))
    assert [matcher.push(piece) for piece in ("Hi Us", "e", "d")] == ["Hi ", "", "Used"]
    assert matcher.stop_at is None


def test_nothing_is_shown_after_a_stop():
    matcher = StopMatcher(("\n\n", "END"))
    assert matcher.push("one\n\ntwo END") == "one"
    assert matcher.stop_at == 3
    assert matcher.push("three") == ""
    assert matcher.flush() == ""


def test_without_stops_everything_is_shown():
    matcher = StopMatcher(())
    assert matcher.push("text") == "text"
    assert matcher.flush() == ""


def test_empty_stop_is_refused():
    with pytest.raises(DeftError, match=r"at least 1 character, got \['a', ''\]"):
        StopMatcher(("a", ""))


SPECIAL = {"<|end|>": 7, "<|end|>s": 8, "<|user|>": 9}


def watch(stops, *pushes):
    """Push pairs of text and token; return the text shown and the stop's position."""
    matcher = StopMatcher(stops, SPECIAL)
    shown = "".join(matcher.push(text, token) for text, token in pushes)
    return shown, matcher.stop_at


def test_a_special_token_is_a_stop_string():
    assert watch(("<|end|>",), ("ab", 1), ("", 7), ("c", 2)) == ("ab", 2)
    assert watch(("<|end|>",), ("ab", 1), ("", 9), ("c", 2)) == ("abc", None)


def test_text_that_spells_a_special_token_is_a_stop_string_too():
    assert watch(("<|end|>",), ("ab<|e", 1), ("nd|>c", 2)) == ("ab", 2)


def test_a_stop_string_may_mix_text_and_special_tokens():
    stop = ("\n<|user|>b",)
    assert watch(stop, ("a\n", 1), ("", 9), ("bc", 2)) == ("a", 1)
    assert watch(stop, ("a\n", 1), ("bc", 2)) == ("a\nbc", None)
    assert watch(stop, ("a\n", 1), ("", 9), ("c", 2)) == ("a\nc", None)


def test_the_longest_special_token_is_meant():
    assert watch(("<|end|>s",), ("a", 1), ("", 8)) == ("a", 1)
    assert watch(("<|end|>s",), ("a", 1), ("", 7), ("b", 2)) == ("ab", None)


def test_positions_do_not_count_special_tokens():
    stops = ("<|end|>", "<|user|><|user|>")
    assert watch(stops, ("a", 1), ("", 9), ("b", 2), ("", 7)) == ("ab", 2)


def test_copies_know_the_special_tokens():
    matcher = StopMatcher(("<|end|>",), SPECIAL)
    twin = matcher.copy()
    assert (twin.push("a", 1), twin.push("", 7), twin.stop_at) == ("a", "", 1)
    assert matcher.push("b", 1) == "b" and matcher.stop_at is None
