"""Tokenizers in SentencePiece model files, against the library of that name."""

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_jax.errors import DeftError
from deft_jax.models.tokenizers.tokenizer import Tokenizer

sentencepiece = pytest.importorskip("sentencepiece")

CORPUS = [
    "the cat sat on the mat, 12 cats sat; the hat!",
    "a theory of mats and hats: cats sit, that is what they do",
    "le café déjà vu, naïve   façade ﬁn ½ Ａ",
]
KINDS = {
    "llama": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "no prefix": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<tool>"],
    },
    "single spaces": {"normalization_rule_name": "identity"},
}
letters = st.characters(exclude_categories=["Cs"])
words = st.sampled_from("the cat sat on mat hat café ﬁn ½ <s> <tool> <0x41>".split())
texts = st.lists(words | st.sampled_from([" ", "  ", "\n"]) | st.text(letters)).map(
    "".join
)


@pytest.fixture(scope="module")
def models():
    """Return a SentencePiece model of each kind, serialised."""
    return {kind: train(**options) for kind, options in KINDS.items()}


def train(model_type="bpe", **options):
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=stream,
        model_type=model_type,
        vocab_size=330,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return stream.getvalue()


@pytest.fixture(scope="module")
def pairs(models, tmp_path_factory):
    """Our tokenizer and the library's own for each kind of model."""
    found = {}
    for kind, model in models.items():
        folder = tmp_path_factory.mktemp("sentencepiece")
        (folder / "tokenizer.model").write_bytes(model)
        own = sentencepiece.SentencePieceProcessor(model_proto=model)
        found[kind] = Tokenizer.from_folder(folder), own
    return found


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_encodes_and_decodes_as_the_library(pairs, kind, text):
    ours, library = pairs[kind]
    ids = library.encode(text)
    assert ours.encode(text, add_special_tokens=False) == ids
    assert ours.decode(ids) == library.decode(ids)


def test_begins_and_ends_as_the_model_says(pairs):
    tokenizer, library = pairs["llama"]
    assert tokenizer.bos_token_id == library.bos_id() == 1
    assert tokenizer.eos_token_ids == (library.eos_id(),) == (2,)
    assert tokenizer.encode("the cat") == [1, *library.encode("the cat")]
    assert tokenizer.vocab_size == library.get_piece_size()


@pytest.fixture
def write(tmp_path, models):
    def write_folder(**contents):
        (tmp_path / "tokenizer.model").write_bytes(models["llama"])
        for stem, content in contents.items():
            (tmp_path / f"{stem}.json").write_text(json.dumps(content))
        return tmp_path

    return write_folder


@pytest.fixture
def size(pairs):
    return pairs["llama"][1].get_piece_size()


def test_tokens_that_the_folder_adds(write, size):
    added = {str(size + 1): {"content": "<|x|>", "special": False}}
    path = write(
        added_tokens={"<|im_end|>": size},
        tokenizer_config={"added_tokens_decoder": added, "add_bos_token": False},
    )
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer.eos_token_ids == (2, size)
    assert tokenizer.encode("<|x|>") == [size + 1]
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [size]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"added_tokens": {"<|im_end|>": 10**6}}, "to have the id 1000000, got"),
        ({"added_tokens": {"<|im_end|>": "7"}}, "expected an id for '<|im_end|>'"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"a": {"content": "x"}}}},
            "to map ids to objects",
        ),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"1": 5}}},
            "to map ids to objects",
        ),
    ],
)
def test_added_tokens_that_cannot_be(write, contents, message):
    with pytest.raises(DeftError) as caught:
        Tokenizer.from_folder(write(**contents))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff", b"abc" * 100])
def test_damaged_model(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(DeftError, match=r"cannot read .*tokenizer.model as Sent"):
        Tokenizer.from_folder(tmp_path)


def test_unigram_models_are_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train("unigram"))
    with pytest.raises(DeftError, match="of type BPE, got type 1"):
        Tokenizer.from_folder(tmp_path)


def test_models_that_change_characters_are_refused(tmp_path):
    model = train(normalization_rule_name="nmt_nfkc")
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(DeftError, match="got the normaliser 'nmt_nfkc'"):
        Tokenizer.from_folder(tmp_path)


def test_without_the_package_the_error_says_what_to_install(write, monkeypatch):
    # None among the modules makes an import fail.
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    with pytest.raises(DeftError, match=r"pip install 'deft-jax\[sentencepiece\]'"):
        Tokenizer.from_folder(write())
