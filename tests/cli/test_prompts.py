import io
import json
import os
import sys

import pytest

from deft_jax.cli.arguments import build_parser
from deft_jax.cli.prompts import encode_prompts, read_prompts, read_tools
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


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n", b"\xef\xbb\xbf\n"])
def test_nothing_on_standard_input_is_refused(monkeypatch, content):
    pipe(monkeypatch, content)
    with pytest.raises(DeftError, match="standard input: .* empty prompt"):
        read()


@pytest.mark.parametrize("content", [" ", "\n", "\t\n "])
def test_space_is_a_prompt_as_any_other(monkeypatch, content):
    assert read("--prompt", content) == [content]
    pipe(monkeypatch, content.encode() + b"\n")
    assert read() == [content]


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


@pytest.mark.parametrize("kind", ["folder", "secret"])
def test_unreadable_file_is_an_os_error(tmp_path, kind):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("a")
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("root reads every file")
    with pytest.raises(OSError):
        read("--prompt-file", str(path))


def tools_of(path, content):
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    arguments = ["generate", "--prompt", "p", "--chat", "--tools", str(path)]
    return read_tools(build_parser().parse_args(arguments))


def test_tools_are_a_list_of_a_file(tmp_path):
    assert read_tools(build_parser().parse_args(["generate"])) is None
    content = '[{"type": "function", "function": {"name": "add"}}]'
    assert tools_of(tmp_path / "t.json", content) == json.loads(content)


@pytest.mark.parametrize(
    "content", ["", "{", '{"type": "function"}', "[1]", "[" * 100_000, "\udcff"]
)
def test_tools_that_are_none_are_one_line(tmp_path, content):
    with pytest.raises(DeftError, match=r"t\.json: expected") as error:
        tools_of(tmp_path / "t.json", content)
    assert "\n" not in str(error.value)


class Recorder:
    """A tokenizer that returns what it was asked."""

    def encode(self, text, *, parse_special=False):
        return text, parse_special

    def encode_chat(self, messages, *, tools=None, template_args=None):
        return messages, tools, template_args


def encoded(*arguments, tools=None):
    options = build_parser().parse_args(["generate", "--prompt", "p", *arguments])
    return encode_prompts(options, ["p"], tools, Recorder())


def test_prompt_is_text_unless_control_tokens_are_asked_for():
    assert encoded() == ["p"]
    assert encoded("--special") == [("p", True)]


def test_chat_takes_system_message_tools_and_arguments():
    user, tools = {"role": "user", "content": "p"}, [{"type": "function"}]
    assert encoded("--chat") == [([user], None, {})]
    options = ("--chat", "--system", "s", "--template-arg", "enable_thinking=false")
    system = {"role": "system", "content": "s"}
    assert encoded(*options, tools=tools) == [
        ([system, user], tools, {"enable_thinking": False})
    ]
