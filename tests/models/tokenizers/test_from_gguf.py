"""Tokenizers built from the metadata of GGUF files, on vocabularies made by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_jax.errors import DeftError
from deft_jax.models.tokenizers.tokenizer import Tokenizer
from tests.support.models.tiny_vocabularies import (
    byte_level_metadata,
    sentencepiece_metadata,
)

texts = st.text(st.characters(exclude_categories=["Cs"]))
BYTE_LEVEL = Tokenizer.from_gguf(byte_level_metadata())
SENTENCEPIECE = Tokenizer.from_gguf(sentencepiece_metadata())


def pieces(tokenizer, text):
    """Return the bytes of each token of `text`, without BOS."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [tokenizer.token_bytes(token_id) for token_id in ids]


@given(text=texts)
@settings(deadline=None)
def test_byte_level_round_trip(text):
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text)) == text


@given(text=texts.filter(lambda text: "▁" not in text))
@settings(deadline=None)
def test_sentencepiece_round_trip(text):
    assert SENTENCEPIECE.decode(SENTENCEPIECE.encode(text)) == text


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", [b"hello", b"1234"]),
        ("smollm", [b"hello", b"1", b"2", b"3", b"4"]),
        ("llama-bpe", [b"hello", b"123", b"4"]),
        ("qwen2", [b"hello", b"1", b"2", b"3", b"4"]),
    ],
)
def test_pre_tokenizer_decides_how_digits_split(pre, expected):
    tokenizer = Tokenizer.from_gguf(byte_level_metadata(pre=pre))
    assert pieces(tokenizer, "hello1234") == expected


@pytest.mark.parametrize(("pre", "is_whole"), [("llama-bpe", True), ("gpt-2", False)])
def test_llama3_takes_whole_words_without_merges(pre, is_whole):
    metadata = byte_level_metadata(pre=pre, merges=[])
    assert (pieces(Tokenizer.from_gguf(metadata), "hello") == [b"hello"]) == is_whole


@pytest.mark.parametrize(
    ("metadata", "begins_with_bos"),
    [
        (byte_level_metadata(), False),
        (byte_level_metadata(add_bos_token=True), True),
        (byte_level_metadata(pre="llama-bpe"), True),
        (byte_level_metadata(pre="llama-bpe", add_bos_token=False), False),
        (byte_level_metadata(add_bos_token=True, bos_token_id=None), False),
        (sentencepiece_metadata(), True),
        (sentencepiece_metadata(add_bos_token=False), False),
    ],
)
def test_bos_is_added_where_the_checkpoint_asks_for_it(metadata, begins_with_bos):
    tokenizer = Tokenizer.from_gguf(metadata)
    plain = tokenizer.encode("ab", add_special_tokens=False)
    bos = [tokenizer.bos_token_id] if begins_with_bos else []
    assert tokenizer.encode("ab") == bos + plain


def test_bos_is_not_put_before_bos():
    assert SENTENCEPIECE.encode("<s>", parse_special=True) == [1]


def test_user_defined_tokens_are_always_parsed_and_are_text():
    ids = BYTE_LEVEL.encode("h<tool é>h")
    assert 2 in ids
    assert BYTE_LEVEL.decode(ids) == "h<tool é>h"
    assert BYTE_LEVEL.special_token_ids == {0, 1}


def test_sentencepiece_merges_the_best_score_first():
    assert pieces(SENTENCEPIECE, "ab") == [b" ab"]
    assert pieces(SENTENCEPIECE, "bab") == [b" ", b"b", b"ab"]
    assert pieces(SENTENCEPIECE, "aab") == [b" a", b"ab"]


def test_sentencepiece_falls_back_to_bytes():
    assert pieces(SENTENCEPIECE, "é☃") == [
        b" ",
        "é".encode(),
        *(b"\xe2", b"\x98", b"\x83"),
    ]


def test_sentencepiece_text_never_becomes_a_control_token():
    assert pieces(SENTENCEPIECE, "<s>") == [b" ", b"<", b"s>"]


def test_sentencepiece_without_space_prefix():
    tokenizer = Tokenizer.from_gguf(sentencepiece_metadata(add_space_prefix=False))
    assert pieces(tokenizer, " ab") == [b" ab"]
    assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"


def test_every_kind_of_end_is_an_eos_and_special():
    metadata = byte_level_metadata(eot_token_id=5, eom_token_id=1)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.eos_token_ids == (1, 5)
    assert tokenizer.special_token_ids == {0, 1, 5}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "expected tokenizer.ggml.model in the GGUF"),
        (byte_level_metadata(tokens=None), "expected tokenizer.ggml.tokens in the"),
        (byte_level_metadata(merges=None), "expected tokenizer.ggml.merges in the"),
        (sentencepiece_metadata(scores=None), "expected tokenizer.ggml.scores in the"),
        (byte_level_metadata(model="rwkv"), "'gpt2' or 'llama', got 'rwkv'"),
        (byte_level_metadata(pre="tekken"), "one of .*llama-bpe.*; got 'tekken'"),
        (byte_level_metadata(merges=["x nothing"]), "vocabulary is damaged"),
        (byte_level_metadata(token_type=[1]), "expected 266 entries in .* got 1"),
    ],
)
def test_metadata_that_cannot_be_used(metadata, message):
    with pytest.raises(DeftError, match=message) as caught:
        Tokenizer.from_gguf(metadata)
    assert "\n" not in str(caught.value)


def test_no_chat_template():
    with pytest.raises(DeftError, match="leave out --chat"):
        BYTE_LEVEL.apply_chat_template([{"role": "user", "content": "hello"}])
