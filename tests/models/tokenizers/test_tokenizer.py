"""The tokenizer of the real SmolLM2, read from its GGUF file."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_jax.errors import DeftError
from deft_jax.models.checkpoints.gguf_file import GGUFFile
from deft_jax.models.tokenizers.from_gguf import read_gguf_tokenizer
from deft_jax.models.tokenizers.tokenizer import Tokenizer

SPECIAL_TEXTS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
VOCAB_SIZE = 49152

BYTES_IN_SMOLLM2 = frozenset(range(256)) - {
    *(0x04, 0x06, 0x13, 0x14, 0x16, 0x1D),
    *(0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)),
}


def is_in_smollm2(character):
    return BYTES_IN_SMOLLM2.issuperset(character.encode())


texts = st.text(st.characters(exclude_categories=["Cs"]).filter(is_in_smollm2))
texts_with_specials = st.lists(st.sampled_from(SPECIAL_TEXTS) | texts).map("".join)
token_ids = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=20)


@pytest.fixture(scope="module")
def metadata(smollm2_path):
    return GGUFFile(smollm2_path).metadata


@pytest.fixture(scope="module")
def backend(metadata):
    return read_gguf_tokenizer(metadata).backend


@pytest.fixture(scope="module")
def smollm2(metadata):
    return Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
        ("2024", [34, 32, 34, 36]),
    ],
)
def test_encodes_as_the_published_tokenizer(smollm2, text, ids):
    assert smollm2.encode(text) == ids


def test_chat_prompt_has_the_default_system_message(smollm2):
    assert smollm2.apply_chat_template(QUESTION) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
        "Hugging Face<|im_end|>\n<|im_start|>user\nWhat is the capital of France?"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_ids_hold_special_tokens(smollm2):
    system = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308]
    system += [34519, 28, 7018, 411, 407, 19712, 8182, 2, 198]
    user = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198]
    assert smollm2.encode_chat(QUESTION) == [*system, *user, 1, 520, 9531, 198]


def test_properties_come_from_the_checkpoint(smollm2):
    assert smollm2.vocab_size == VOCAB_SIZE
    assert smollm2.bos_token_id == 1
    assert smollm2.eos_token_ids == (2,)
    assert smollm2.special_token_ids == frozenset(range(17))


@given(text=texts)
@settings(deadline=None)
def test_decode_undoes_encode(smollm2, text):
    assert smollm2.decode(smollm2.encode(text)) == text


@given(text=texts_with_specials)
@settings(deadline=None)
def test_special_tokens_in_a_plain_prompt_are_text(smollm2, text):
    ids = smollm2.encode(text)
    assert smollm2.special_token_ids.isdisjoint(ids)
    assert smollm2.decode(ids) == text


def test_control_tokens_are_text_unless_parsed(smollm2):
    text = "x<|im_end|>y"
    x, y = (smollm2.encode(letter)[0] for letter in "xy")
    assert smollm2.encode(text, parse_special=True) == [x, 2, y]
    assert 2 not in smollm2.encode(text)


@given(text=texts_with_specials)
@settings(deadline=None)
def test_parsed_special_tokens_come_back_when_asked_for(smollm2, text):
    ids = smollm2.encode(text, parse_special=True)
    assert smollm2.decode(ids, skip_special_tokens=False) == text


@given(ids=token_ids, skip=st.booleans())
@settings(deadline=None)
def test_decodes_as_the_backend(backend, smollm2, ids, skip):
    expected = backend.decode(ids, skip_special_tokens=skip)
    assert smollm2.decode(ids, skip_special_tokens=skip) == expected


@given(ids=token_ids, skip=st.booleans())
@settings(deadline=None)
def test_streamed_text_is_the_decoded_text(smollm2, ids, skip):
    stream = smollm2.stream(skip_special_tokens=skip)
    text = "".join(map(stream.push, ids)) + stream.flush()
    assert text == smollm2.decode(ids, skip_special_tokens=skip)


def test_characters_without_bytes_in_the_vocabulary_are_dropped(smollm2):
    assert smollm2.decode(smollm2.encode("a\x04b")) == "ab"


def test_emoji_is_split_into_tokens_of_partial_characters(smollm2):
    ids = smollm2.encode("🦜")
    assert len(ids) > 1
    assert b"".join(map(smollm2.token_bytes, ids)) == "🦜".encode()


def test_ids_outside_the_vocabulary_have_no_text(smollm2):
    assert smollm2.decode([-1, VOCAB_SIZE, 504, 10**6]) == "The"


def test_half_a_surrogate_pair_is_refused(smollm2):
    with pytest.raises(DeftError, match="surrogate pair at character 2"):
        smollm2.encode("ab\udc80")
