"""The script that checks tokenizers against llama.cpp's vocabularies and ids."""

import os
from pathlib import Path

import gguf
import pytest

from scripts import check_vocabularies
from tests.support.models.tiny_vocabularies import byte_level_metadata

TEXTS = ("hello", "1234 h", "")


def write_vocabulary(folder: Path) -> Path:
    """Write a tiny vocabulary with texts, the ids of the second one wrong."""
    path = folder / "ggml-vocab-tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    metadata = byte_level_metadata()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    texts = check_vocabularies.SEPARATOR.join(TEXTS)
    Path(f"{path}.inp").write_text(texts, encoding="utf-8")
    hello = metadata["tokenizer.ggml.tokens"].index("hello")
    Path(f"{path}.out").write_text(f" {hello}\n 7 7 7\n")
    return path


def test_counts_what_is_right_and_wrong(tmp_path, capsys):
    path = write_vocabulary(tmp_path)
    assert check_vocabularies.main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert f"{path.name}: 2 of 3\n    '1234 h': expected [7, 7, 7], got" in output
    assert output.endswith("0 of 1 supported vocabularies give every expected id\n")


def test_a_folder_without_vocabularies_is_no_success(tmp_path):
    assert check_vocabularies.main([str(tmp_path)]) == 1


def test_vocabularies_of_llama_cpp(capsys):
    folder = os.environ.get("DEFT_JAX_VOCABULARIES")
    if folder is None:
        pytest.skip(
            "DEFT_JAX_VOCABULARIES does not name the folder with llama.cpp's "
            "vocabularies; see scripts/check_vocabularies.py for where they are"
        )
    assert check_vocabularies.main([folder]) == 0, capsys.readouterr().out
