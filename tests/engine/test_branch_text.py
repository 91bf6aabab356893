"""Text of branches: what is put on a path, and where a path ends."""

import dataclasses

import pytest

from deft_jax import DeftError, Engine, Sampling
from deft_jax.engine.branch_path import BranchPath
from deft_jax.engine.branch_text import encode_behind, length_before_stop
from deft_jax.models.tokenizers.detokenizer import Detokenizer
from deft_jax.models.tokenizers.tokenizer import Tokenizer
from tests.support.branch_mirror import LIMIT, token_logprobs
from tests.support.models.tiny_vocabularies import (
    byte_level_metadata,
    sentencepiece_metadata,
)
from tests.support.tiny_model import CAPACITY, decode_alone, tiny_model

VOCAB = 10**6


class HexTokenizer:
    """Tokens 0 to 15 are a hexadecimal digit, the others two: 26 is "1a"."""

    eos_token_ids = ()
    special_tokens = {"<end>": 127}

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            size = 2 if len(text) > 1 and 16 <= int(text[:2], 16) < 127 else 1
            ids.append(int(text[:size], 16))
            text = text[size:]
        return ids

    def decode(self, ids, *, skip_special_tokens: bool) -> str:
        return "".join(f"{i:x}" for i in ids if i != 127 or not skip_special_tokens)

    def stream(self, context) -> Detokenizer:
        return Detokenizer(lambda token: b"%x" % token, skipped=(127,))


@pytest.fixture(scope="module")
def hex_engine() -> Engine:
    return Engine(tiny_model(), HexTokenizer(), capacity=CAPACITY)


@pytest.mark.parametrize("first", [1, 2])
def test_a_stop_string_that_begins_within_a_token(hex_engine: Engine, first: int):
    """The first character of a token of two stays, as a token of its own."""
    sampling = Sampling(temperature=0.9, seed=4, max_new_tokens=20, ignore_eos=True)
    prompt = HexTokenizer().encode("7e11f0")
    with hex_engine.session(sampling=sampling) as session:
        whole = session.open(prompt).fork().generate()
        ends = [
            len(HexTokenizer().decode(whole.tokens[:i], skip_special_tokens=True))
            for i in range(len(whole.tokens) + 1)
        ]
        # The stop string takes half of token `at`, and what follows.
        at = next(
            i
            for i in range(3, 18)
            if ends[i + 1] - ends[i] == 2
            and whole.text.find(whole.text[ends[i] + 1 :][: first + 2]) == ends[i] + 1
        )
        stop = whole.text[ends[at] + 1 :][: first + 2]
        branch = session.open(prompt).fork().generate(stop=stop)
        assert branch.finish_reason == "stop"
        assert branch.text == whole.text[: ends[at] + 1]
        left_over = int(whole.text[ends[at]], 16)
        assert branch.tokens == (*whole.tokens[:at], left_over)
        expected = token_logprobs(prompt, branch.tokens)
        assert branch.token_logprobs == pytest.approx(expected, abs=LIMIT)
        again = branch.fork().extend(stop)
        assert again.path_text() == branch.path_text() + stop


def test_a_stop_string_that_names_a_special_token(hex_engine: Engine):
    sampling = Sampling(
        temperature=0.9, max_new_tokens=9, logit_bias={127: 9.0}, stop=("<end>",)
    )
    prompt = HexTokenizer().encode("7e11f0")
    ended = 0
    for seed in range(4):
        settings = dataclasses.replace(sampling, seed=seed)
        with hex_engine.session() as session:
            branch = session.open(prompt).generate(settings)
            if branch.finish_reason == "stop":
                ended += 1
                assert 127 not in branch.tokens
                alone = decode_alone(prompt, settings, key=804215951)
                assert branch.tokens == alone.tokens[: alone.tokens.index(127)]
    assert ended


def cut(tokens: list[int], text: str, *stops: str, eos=(), ignore_eos=False):
    tokenizer = HexTokenizer()
    tokenizer.eos_token_ids = eos
    return length_before_stop(
        tokens, text, tokenizer.stream([]), stops, tokenizer, ignore_eos=ignore_eos
    )


def test_where_texts_end():
    assert cut([0x1A, 0x2B], "1a", "2b") == (1, "")
    assert cut([0x1A, 0x2B], "1", "a2") == (0, "1")
    assert cut([0x1A, 0x2B], "1", "a2b", "2") == (0, "1")
    assert cut([0x1A, 0x2B, 0x2B], "1a2", "b2b") == (1, "2")
    assert cut([0x1A, 0x2B, 127], "1a2b", "<end>") == (2, "")
    assert cut([0x1A, 127, 0x2B, 127], "1a", "<end>2b<end>") == (1, "")
    assert cut([0x1A, 0x2B, 127], "1a2", "b<end>") == (1, "2")
    assert cut([127, 0x1A, 0x2B], "1a", "2b") == (2, "")
    # An end-of-text token that no stop string names.
    assert cut([0x1A, 127], "1a", eos=(127,)) == (1, "")
    assert cut([127], "", "2b", eos=(127,)) == (0, "")
    # One that a stop string begins before.
    assert cut([0x1A, 0x2B, 127], "1a2", "b<end>", eos=(127,)) == (1, "2")


def byte_tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(byte_level_metadata())


def test_no_place_to_end_within_a_character():
    """Tokens are bytes: the stop string begins behind a character of two."""
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode("aé!")
    assert len(tokens) == 4
    found = length_before_stop(
        tokens, "aé", tokenizer.stream(), ("!",), tokenizer, ignore_eos=False
    )
    assert found == (3, "")


def test_characters_that_are_split_over_branches_come_out_whole():
    tokenizer = byte_tokenizer()
    prompt, tokens = tokenizer.encode("a"), tokenizer.encode("é€")
    assert len(tokens) == 5
    path = BranchPath.of_prompt(tokenizer, prompt, prompt).grown(tokens[:1], [-1.0])
    assert (path.text, path.all_text) == ("", "a")
    left, right = path.forked(), path.forked()
    left = left.grown(tokens[1:4], [-1.0, -2.0, -3.0])
    assert (left.text, left.all_text) == ("é", "aé")
    assert left.forked().grown(tokens[4:], [-1.0]).text == "€"
    right = right.grown(tokenizer.encode("b"), [-1.0])
    assert (right.text, right.all_text) == ("\ufffdb", "a\ufffdb")
    assert path.all_text == "a" and left.logprob == -6.0
    assert left.tokens == tuple(tokens[1:4])


@pytest.mark.parametrize("text", ["ab", " ab", "aé<s>", "\n", "  a", "ab ab"])
def test_text_behind_a_path_gets_neither_bos_nor_a_space(text: str):
    for metadata in (sentencepiece_metadata(), byte_level_metadata()):
        tokenizer = Tokenizer.from_gguf(metadata)
        stream = tokenizer.stream(tokenizer.encode("ab"))
        ids = encode_behind(tokenizer, text, stream, VOCAB)
        assert "".join(stream.push(i) for i in ids) == text
        assert tokenizer.bos_token_id not in ids


def test_token_ids_stay_as_they_are():
    tokenizer = Tokenizer.from_gguf(sentencepiece_metadata())
    assert encode_behind(tokenizer, (1, 5), tokenizer.stream([3]), 9) == [1, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least 1 token, got ''"),
        ([], r"at least 1 token, got \[\]"),
        ([3, 9], "token ids from 0 to 8, got ids from 3 to 9"),
        ([-1], "token ids from 0 to 8, got ids from -1 to -1"),
        (5, "text or integer token ids, got 5"),
        (None, "text or integer token ids, got None"),
        (["ab"], r"expected text or token ids, got \['ab'\]"),
        ([1.5], "text or integer token ids"),
    ],
)
def test_what_is_no_text(text, message: str):
    tokenizer = Tokenizer.from_gguf(byte_level_metadata())
    with pytest.raises(DeftError, match=message) as error:
        encode_behind(tokenizer, text, tokenizer.stream([3]), 9)
    assert "\n" not in str(error.value)
