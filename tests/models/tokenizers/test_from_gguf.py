"""Tokenizers built from the metadata of GGUF files, on vocabularies made by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_jax.errors import DeftError
from deft_jax.models.tokenizers.token_roles import END_NAMES
from deft_jax.models.tokenizers.tokenizer import Tokenizer
from deft_jax.models.tokenizers.word_splits import SPLIT_OF_PRE
from tests.support.models.tiny_vocabularies import (
    byte_level_metadata,
    sentencepiece_metadata,
)

texts = st.text(st.characters(exclude_categories=["Cs"]))
BYTE_LEVEL = Tokenizer.from_gguf(byte_level_metadata())
OF_PRE: dict[str, Tokenizer] = {}
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
        ("deepseek-llm", [b"hello", b"1234"]),
        ("tekken", [b"hello", b"1", b"2", b"3", b"4"]),
        ("smaug-bpe", [b"hello", b"123", b"4"]),
        ("trillion", [b"hello", b"1234"]),
    ],
)
def test_pre_tokenizer_decides_how_digits_split(pre, expected):
    tokenizer = Tokenizer.from_gguf(byte_level_metadata(pre=pre))
    assert pieces(tokenizer, "hello1234") == expected


@pytest.mark.parametrize(
    "pre",
    [
        *("deepseek-llm", "deepseek-coder", "tekken", "smaug-bpe", "pixtral"),
        *("midm-2.0", "megrez", "viking", "seed-coder", "minerva-7b", "trillion"),
        *("gpt-4o", "falcon", "superbpe", "bloom", "qwen35", "deepseek-v3"),
    ],
)
@given(text=texts)
@settings(deadline=None)
def test_no_cut_loses_text(pre, text):
    tokenizer = OF_PRE.setdefault(
        pre, Tokenizer.from_gguf(byte_level_metadata(pre=pre))
    )
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("tekken", "camelCase XMLs", ["camel", "Case", "ĠXMLs"]),
        ("gpt-4o", "it's 1234", ["it's", "Ġ", "123", "4"]),
        ("seed-coder", "a!\n\nb", ["a", "!", "ĊĊ", "b"]),
        ("llama-bpe", "a!\n\nb", ["a", "!ĊĊ", "b"]),
        ("viking", "a,b 12", ["a", ",", "b", "Ġ", "1", "2"]),
        ("minerva-7b", "don't 12", ["don", "'t", "Ġ", "1", "2"]),
        ("deepseek-coder", "a\n 12 b", ["a", "Ċ", "Ġ", "1", "2", "Ġb"]),
        ("superbpe", "in 1234567", ["inĠ", "1", "234", "567"]),
        ("qwen35", "e\u0301a", ["eÌģa"]),
        ("qwen2", "e\u0301a", ["e", "Ìģa"]),
    ],
)
def test_words_of_each_family(pre, text, words):
    cut = SPLIT_OF_PRE[pre].pre_tokenizer().pre_tokenize_str(text)
    assert [word for word, _ in cut] == words


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
    metadata = byte_level_metadata(eot_token_id=5, eom_token_id=1, eos_token_ids=[7])
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.eos_token_ids == (1, 5, 7)
    assert tokenizer.special_token_ids == {0, 1, 5, 7}


def renamed(metadata, names):
    """Metadata whose tokens of the given ids have other names."""
    tokens = list(metadata["tokenizer.ggml.tokens"])
    for token_id, name in names.items():
        tokens[token_id] = name
    return metadata | {"tokenizer.ggml.tokens": tokens}


@pytest.mark.parametrize("name", END_NAMES)
def test_control_tokens_known_to_end_a_turn_are_ends(name):
    metadata = renamed(byte_level_metadata(eos_token_id=0), {1: name})
    assert Tokenizer.from_gguf(metadata).eos_token_ids == (0, 1)


def test_a_user_defined_end_of_turn_is_an_end_and_special():
    metadata = renamed(byte_level_metadata(), {2: "<|im_end|>"})
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.eos_token_ids == (1, 2)
    assert tokenizer.special_token_ids == {0, 1, 2}


def test_ordinary_text_that_looks_like_an_end_is_none():
    names = {260: "</s>", 261: "<eos>", 262: "<|im_end|>"}
    tokenizer = Tokenizer.from_gguf(renamed(byte_level_metadata(merges=[]), names))
    assert tokenizer.eos_token_ids == (1, 262)
    assert pieces(tokenizer, "</s>") == [b"<", b"/", b"s", b">"]


def test_an_end_of_message_within_a_turn_is_none():
    names = {0: "<|return|>", 2: "<|call|>"}
    metadata = renamed(byte_level_metadata(eos_token_id=0, bos_token_id=None), names)
    assert Tokenizer.from_gguf(metadata).eos_token_ids == (0, 2)


def test_sentencepiece_begins_and_ends_where_the_file_does_not_say():
    metadata = sentencepiece_metadata(bos_token_id=None, eos_token_id=None)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2,))
    assert tokenizer.encode("ab")[0] == 1


@pytest.mark.parametrize("value", [266, -1, 2**40, "1", 1.0, True, [1, 999]])
@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "eot_token_id"])
def test_ids_outside_the_vocabulary_are_ignored_with_a_warning(name, value):
    expected = rf"tokenizer.ggml.{name}: expected a token id from 0 to 265, got"
    with pytest.warns(UserWarning, match=expected):
        tokenizer = Tokenizer.from_gguf(byte_level_metadata(**{name: value}))
    assert tokenizer.eos_token_ids == (1,)
    assert tokenizer.bos_token_id in (None, 0, 1)


LANDMARKS = {
    "llama-bpe": (128256, {128000: "<|begin_of_text|>"}, [b"hello", b"123", b"4"]),
    "qwen2": (
        151936,
        {151643: "<|endoftext|>", 151644: "<|im_start|>"},
        [b"hello", b"1", b"2", b"3", b"4"],
    ),
    "gpt-2": (50257, {50256: "<|endoftext|>"}, [b"hello", b"1234"]),
}


@pytest.mark.parametrize("pre", [None, "default"])
@pytest.mark.parametrize("name", LANDMARKS)
def test_known_vocabularies_need_no_pre_tokenizer(name, pre):
    size, landmarks, expected = LANDMARKS[name]
    metadata = byte_level_metadata(pre=pre, token_type=None)
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens = tokens + [f"<pad {i}>" for i in range(len(tokens), size)]
    metadata = renamed(metadata | {"tokenizer.ggml.tokens": tokens}, landmarks)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert pieces(tokenizer, "hello1234") == expected
    assert (tokenizer.encode("")[:1] == [0]) == (name == "llama-bpe")


@pytest.mark.parametrize("pre", [None, "default"])
def test_an_unknown_vocabulary_without_pre_tokenizer_warns(pre):
    with pytest.warns(UserWarning, match=r"tokenizer.ggml.pre\), and its 266 tokens"):
        tokenizer = Tokenizer.from_gguf(byte_level_metadata(pre=pre))
    assert pieces(tokenizer, "hello1234") == [b"hello", b"1234"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "expected tokenizer.ggml.model in the GGUF"),
        (byte_level_metadata(tokens=None), "expected tokenizer.ggml.tokens in the"),
        (byte_level_metadata(merges=None), "expected tokenizer.ggml.merges in the"),
        (sentencepiece_metadata(scores=None), "expected tokenizer.ggml.scores in the"),
        (byte_level_metadata(model="rwkv"), "'gpt2' or 'llama', got 'rwkv'"),
        (byte_level_metadata(pre="kimi-k2"), "one of .*llama-bpe.*; got 'kimi-k2'"),
        (byte_level_metadata(merges=["x nothing"]), "vocabulary is damaged"),
        (byte_level_metadata(token_type=[1]), "expected 266 entries in .* got 1"),
        (sentencepiece_metadata(scores=[0.5]), "expected 270 entries in .* got 1"),
        (byte_level_metadata(tokens="abc"), "tokens to be a list, got a str"),
        (byte_level_metadata(tokens=["a", 7]), "entry 1 of .*tokens to be a str"),
        (byte_level_metadata(pre=7), "ggml.pre to be a str, got a int"),
        (
            byte_level_metadata() | {"tokenizer.chat_template": [7]},
            "tokenizer.chat_template to be text, got a list",
        ),
    ],
)
def test_metadata_that_cannot_be_used(metadata, message):
    with pytest.raises(DeftError, match=message) as caught:
        Tokenizer.from_gguf(metadata)
    assert "\n" not in str(caught.value)


def test_no_chat_template():
    with pytest.raises(DeftError, match="leave out --chat"):
        BYTE_LEVEL.apply_chat_template([{"role": "user", "content": "hello"}])
