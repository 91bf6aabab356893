import io
import sys

import pytest

from deft_jax.cli.arguments import build_parser
from deft_jax.cli.prompts import read_prompts
from deft_jax.errors import DeftError


def read(*arguments):
    return read_prompts(build_parser().parse_args(["generate", *arguments]))


def pipe(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_prompts_of_the_command_line_are_taken_as_they_are():
    assert read("--prompt", "a\n", "--prompt", "b") == ["a\n", "b"]


def test_file_loses_its_mark_and_its_last_line_end(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n\ntwo \xe5\x8c\x97\n\n")
    assert read("--prompt-file", str(path)) == ["one\n\ntwo 北\n"]


def test_standard_input_is_the_default(monkeypatch):
    pipe(monkeypatch, b"what?\r\n")
    assert read() == ["what?"]


def test_terminal_is_not_waited_for(monkeypatch):
    pipe(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    with pytest.raises(DeftError, match="no prompt: give --prompt"):
        read()


@pytest.mark.parametrize("content", [b"", b" \n\t\n"])
def test_empty_prompt_is_refused(monkeypatch, content):
    pipe(monkeypatch, content)
    with pytest.raises(DeftError, match="standard input: .* empty prompt"):
        read()
    with pytest.raises(DeftError, match="number 2: .* empty prompt"):
        read("--prompt", "a", "--prompt", content.decode())


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_wrong_byte_is_located(tmp_path, mark):
    path = tmp_path / "latin.txt"
    path.write_bytes(mark + b"caf\xe9 au lait")
    offset = len(mark) + 3
    with pytest.raises(DeftError, match=rf"latin\.txt: .* 0xe9 at offset {offset};"):
        read("--prompt-file", str(path))


def test_argument_that_is_not_utf8_is_refused():
    with pytest.raises(DeftError, match="--prompt: .* invalid byte at character 1"):
        read("--prompt", "a\udcff")


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read("--prompt-file", str(tmp_path / "none"))


def test_system_message_needs_a_chat():
    with pytest.raises(DeftError, match="--system needs --chat"):
        read("--prompt", "a", "--system", "b")
