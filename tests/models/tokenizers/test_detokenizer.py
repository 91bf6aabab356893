"""Streamed text against the text of all tokens at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_jax.models.tokenizers.detokenizer import Detokenizer
from deft_jax.models.tokenizers.tokenizer import Tokenizer
from tests.support.models.tiny_vocabularies import (
    byte_level_metadata,
    sentencepiece_metadata,
)

TOKENIZERS = {
    "byte_level": Tokenizer.from_gguf(byte_level_metadata()),
    "sentencepiece": Tokenizer.from_gguf(sentencepiece_metadata()),
}
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
INVALID_UTF8 = [
    b"\x80",
    b"\xff",
    b"a\xe2\x82",
    b"\xe2\x82a",
    b"\xe2\xe2\x82\xac",
    b"\xf0\x9f\x98",
    b"\xf0\x80\x80\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xc0\xaf\xc3",
]

texts = st.text(st.characters(exclude_categories=["Cs"]))
token_ids = st.lists(st.integers(0, 280), max_size=30)
tokenizers = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def bytes_stream():
    """Return a detokenizer for which token `i` is the byte `i`."""
    return Detokenizer(lambda token_id: bytes([token_id]))


def run(stream, ids):
    return "".join(map(stream.push, ids)) + stream.flush()


@tokenizers
@given(ids=token_ids, skip=st.booleans())
@settings(deadline=None)
def test_any_tokens(tokenizer, ids, skip):
    stream = tokenizer.stream(skip_special_tokens=skip)
    assert run(stream, ids) == tokenizer.decode(ids, skip_special_tokens=skip)


@tokenizers
@given(text=texts)
@settings(deadline=None)
def test_text_comes_in_whole_code_points(tokenizer, text):
    stream = tokenizer.stream()
    ids = tokenizer.encode(text)
    pushed = "".join(map(stream.push, ids))
    assert pushed == tokenizer.decode(ids)
    assert stream.flush() == ""


@given(data=st.binary())
@settings(deadline=None)
def test_any_bytes(data):
    assert run(bytes_stream(), data) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("data", INVALID_UTF8)
def test_invalid_utf8(data):
    assert run(bytes_stream(), data) == data.decode("utf-8", "replace")


def test_code_point_comes_with_its_last_byte():
    stream = bytes_stream()
    assert [stream.push(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]


def test_unfinished_code_point_comes_at_the_end():
    stream = bytes_stream()
    assert [stream.push(byte) for byte in b"\xf0\x9f\x98"] == ["", "", ""]
    assert stream.flush() == REPLACEMENT
    assert stream.flush() == ""


def test_code_point_survives_a_skipped_token():
    tokenizer = TOKENIZERS["byte_level"]
    first, second = tokenizer.encode("é")
    stream = tokenizer.stream()
    assert [stream.push(i) for i in (first, 0, second)] == ["", "", "é"]


@tokenizers
@given(parent=token_ids, branches=st.lists(token_ids, max_size=3))
@settings(deadline=None)
def test_branches_go_on_from_their_parent(tokenizer, parent, branches):
    stream = tokenizer.stream()
    shared = "".join(map(stream.push, parent))
    for branch in branches:
        assert shared + run(stream.copy(), branch) == tokenizer.decode(parent + branch)
    assert shared + stream.flush() == tokenizer.decode(parent)


@tokenizers
@given(prompt=texts, answer=token_ids)
@settings(deadline=None)
def test_context_is_not_repeated(tokenizer, prompt, answer):
    context = tokenizer.encode(prompt)
    text = run(tokenizer.stream(context), answer)
    assert tokenizer.decode(context) + text == tokenizer.decode(context + answer)


def test_only_the_first_space_of_a_sentencepiece_text_is_taken_off():
    tokenizer = TOKENIZERS["sentencepiece"]
    (word,) = tokenizer.encode("ab", add_special_tokens=False)
    assert run(tokenizer.stream(), [word, word]) == "ab ab"
    assert run(tokenizer.stream([word]), [word]) == " ab"
