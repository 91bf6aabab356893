"""Tokenizers in folders laid out as Hugging Face checkpoints are."""

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from deft_jax.errors import DeftError
from deft_jax.models.tokenizers.tokenizer import Tokenizer

TEXT = "the cat sat on the mat, 12 cats sat; the hat!"
BOS, EOS, END_OF_TURN = 0, 1, 2
MESSAGES = [{"role": "user", "content": "hi"}]
TEMPLATE = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"


@pytest.fixture(scope="module")
def backend():
    """A byte-level BPE trained on one line of text."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<turn>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    return backend


@pytest.fixture
def write(tmp_path, backend):
    """Write a checkpoint folder: tokenizer.json and the JSON files given by stem."""

    def write_folder(backend=backend, **contents):
        backend.save(str(tmp_path / "tokenizer.json"))
        for stem, content in contents.items():
            (tmp_path / f"{stem}.json").write_text(json.dumps(content))
        return tmp_path

    return write_folder


def copy_of(backend):
    return Backend.from_str(backend.to_str())


def test_tokenizer_json_alone_is_enough(write):
    tokenizer = Tokenizer.from_folder(write())
    ids = tokenizer.encode(TEXT)
    assert len(ids) < len(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.bos_token_id is None
    assert tokenizer.eos_token_ids == ()
    assert tokenizer.special_token_ids == {BOS, EOS, END_OF_TURN}


@pytest.mark.parametrize("bos", ["<s>", {"content": "<s>", "lstrip": False}])
def test_bos_as_text_or_as_object(write, bos):
    config = {"bos_token": bos, "eos_token": "</s>", "add_bos_token": True}
    tokenizer = Tokenizer.from_folder(write(tokenizer_config=config))
    assert tokenizer.bos_token_id == BOS
    assert tokenizer.eos_token_ids == (EOS,)
    assert tokenizer.encode("")[0] == BOS


def test_generation_config_adds_ends(write):
    path = write(
        tokenizer_config={"eos_token": "<turn>"},
        generation_config={"eos_token_id": [EOS, END_OF_TURN]},
        config={"eos_token_id": 7, "bos_token_id": BOS},
    )
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer.eos_token_ids == (END_OF_TURN, EOS)
    assert tokenizer.bos_token_id == BOS


def test_a_null_bos_is_no_bos(write):
    path = write(tokenizer_config={"bos_token": None}, config={"bos_token_id": BOS})
    assert Tokenizer.from_folder(path).bos_token_id is None


@pytest.mark.parametrize(("declared", "adds_bos"), [(None, True), (False, False)])
def test_post_processor_decides_on_bos_unless_declared(
    write, backend, declared, adds_bos
):
    backend = copy_of(backend)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    config = {"bos_token": "<s>", "add_bos_token": declared}
    ids = Tokenizer.from_folder(write(backend, tokenizer_config=config)).encode("cat")
    assert (ids[0] == BOS) == adds_bos
    assert EOS not in ids


def test_truncation_in_tokenizer_json_is_ignored(write, backend):
    backend = copy_of(backend)
    backend.enable_truncation(2)
    tokenizer = Tokenizer.from_folder(write(backend))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    "declared",
    [
        TEMPLATE,
        [{"name": "tools", "template": "-"}, {"name": "default", "template": TEMPLATE}],
        [{"name": "chat", "template": TEMPLATE}],
    ],
)
def test_chat_template_as_text_or_as_named_list(write, declared):
    config = {"chat_template": declared, "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = Tokenizer.from_folder(write(tokenizer_config=config))
    assert tokenizer.apply_chat_template(MESSAGES) == "<s>hi</s>"
    ids = tokenizer.encode_chat(MESSAGES)
    assert (ids[0], ids[-1]) == (BOS, EOS)


def test_chats_take_tools_and_template_arguments(write):
    template = "{{ tools[0].name }}{% if thinking %}</s>{% endif %}"
    tokenizer = Tokenizer.from_folder(
        write(tokenizer_config={"chat_template": template, "eos_token": "</s>"})
    )
    tools = [{"name": "cat"}]
    plain = tokenizer.encode("cat")
    assert tokenizer.encode_chat(MESSAGES, tools=tools) == plain
    thinking = tokenizer.encode_chat(
        MESSAGES, tools=tools, template_args={"thinking": True}
    )
    assert thinking == [*plain, EOS]


def test_chat_template_in_a_file_of_its_own_comes_first(write):
    path = write(tokenizer_config={"chat_template": "-"})
    (path / "chat_template.jinja").write_text("{{ messages[0].role }}:")
    assert Tokenizer.from_folder(path).apply_chat_template(MESSAGES) == "user:"


def test_no_default_among_named_templates(write):
    named = [{"name": name, "template": "-"} for name in ("tools", "rag")]
    tokenizer = Tokenizer.from_folder(write(tokenizer_config={"chat_template": named}))
    with pytest.raises(DeftError, match="found none"):
        tokenizer.apply_chat_template(MESSAGES)


def test_metaspace_decoder_takes_the_first_space_off(write):
    model = models.BPE({"▁": 0, "a": 1, "▁a": 2}, [("▁", "a")])
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = Tokenizer.from_folder(write(backend))
    assert tokenizer.encode("a a") == [2, 2]
    assert tokenizer.decode([2, 2]) == "a a"


def test_missing_tokenizer_json(tmp_path):
    with pytest.raises(DeftError, match=r"expected tokenizer.json in .*, found none"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_file(write, name, content):
    path = write()
    (path / name).write_text(content)
    with pytest.raises(DeftError, match=name) as caught:
        Tokenizer.from_folder(path)
    assert "\n" not in str(caught.value)


def test_vocabulary_of_another_kind(write):
    backend = Backend(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(DeftError, match=r"byte-level or SentencePiece.*WordPiece"):
        Tokenizer.from_folder(write(backend))
