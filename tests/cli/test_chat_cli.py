"""The command `chat`: with a tiny model in this process, and its parts alone."""

import io
import json
import sys
from typing import cast

import pytest

from deft_jax.cli import chat
from deft_jax.cli.chat_answers import Answerer
from deft_jax.cli.chat_commands import Chat, Output
from deft_jax.cli.chat_input import Entry, TerminalLines, history_path, read_entry
from deft_jax.cli.conversation import Conversation
from deft_jax.cli.main import main
from deft_jax.engine import compilation_cache
from deft_jax.errors import DeftError
from deft_jax.models import load
from deft_jax.results.terminal_text import printable
from tests.cli.test_generate_tiny import Opened, copy_of_tiny_model
from tests.support.tiny_model import AsciiTokenizer, Sampling, decode_alone

SHORT = ("--max-new-tokens", "8", "--max-forks", "3", "--page-size", "8")


class ChatTokenizer(AsciiTokenizer):
    """Has a chat template: a letter for each role, and a line end."""

    def encode_chat(self, messages, *, tools=None, template_args=None):
        """Return the tokens of all messages and of the beginning of an answer."""
        lines = [f"{message['role'][0]}{message['content']}" for message in messages]
        return self.encode("|".join([*lines, "a"]))


def open_chat_model(monkeypatch) -> Opened:
    """Return the model that the command finds, whatever its options say."""
    opened = Opened(copy_of_tiny_model())
    opened.tokenizer = ChatTokenizer()
    monkeypatch.setattr(load, "open_model", lambda source, dtype: opened)
    monkeypatch.setattr(compilation_cache, "enable_compilation_cache", lambda: None)
    return opened


@pytest.fixture
def opened(monkeypatch) -> Opened:
    return open_chat_model(monkeypatch)


@pytest.fixture
def talk(opened, monkeypatch, capsys):
    """Return a function that runs a chat with some lines as its input."""

    def run(*lines, options=SHORT):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
        code = main(["chat", *options])
        return code, capsys.readouterr()

    return run


def saved(path) -> list[dict[str, str]]:
    return json.loads(path.read_text())["messages"]


def expected(messages, **options) -> str:
    """Return what the model says on its own, without a cache."""
    prompt = ChatTokenizer().encode_chat(messages)
    sampling = Sampling(max_new_tokens=8, temperature=0.0, **options)
    return decode_alone(prompt, sampling).text


def test_answers_are_those_of_whole_prompts_and_the_second_is_mostly_cached(
    talk, tmp_path
):
    path = tmp_path / "chat.json"
    question, again = "tell me a story of the sea", "and then?"
    code, output = talk(
        *(question, again, f"/save {path}"),
        options=(*SHORT, "--temperature", "0", "--system", "be brief"),
    )
    assert code == 0, output.err
    messages = saved(path)
    assert [m["role"] for m in messages] == ["system"] + 2 * ["user", "assistant"]
    assert [m["content"] for m in messages[:4:3]] == ["be brief", again]
    assert messages[1]["content"] == question
    for end in (2, 4):
        assert messages[end]["content"] == expected(messages[:end])
    first, second = (line for line in output.err.splitlines() if "cached" in line)
    assert "0 cached" in first
    total = len(ChatTokenizer().encode_chat(messages[:4]))
    before = len(ChatTokenizer().encode_chat(messages[:2]))
    assert f"({total} tokens, " in second
    cached = int(second.split(", ")[1].split()[0])
    # An answer that is empty leaves the first prompt's last token without a node.
    assert cached >= before - 1


def test_forks_differ_and_the_picked_one_goes_on(talk, tmp_path):
    path = tmp_path / "chat.json"
    code, output = talk("question", "/fork 3", "/pick 2", "more", f"/save {path}")
    assert code == 0, output.err
    answer = printable(saved(path)[1]["content"]).strip()
    assert f"[2] {answer}\n[3] " in output.out
    assert "(going on with answer 2)" in output.err


def test_back_and_system_forget(talk, tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    code, output = talk(
        *("one", "two", "/back", f"/save {first}"),
        *("/system be kind", "three", f"/save {second}", "/quit", "never asked"),
    )
    assert code == 0, output.err
    assert [m["content"] for m in saved(first)][0] == "one" and len(saved(first)) == 2
    roles = [m["role"] for m in saved(second)]
    assert roles == ["system", "user", "assistant"]
    assert output.err.count("cached") == 3


def test_conversation_that_outgrows_the_context_is_one_line(talk):
    code, output = talk("x" * 60, "y" * 60, "z" * 60)
    assert code == 2
    assert output.err.splitlines()[-1].startswith(
        "deft-jax: error: the conversation would have"
    )
    assert "context of 128; /trim drops its oldest turn" in output.err


def test_trim_makes_room(talk):
    code, output = talk("x" * 60, "/trim", "y" * 60, "/trim", "z" * 60)
    assert code == 0, output.err
    assert output.err.count("(dropped: ") == 2


def test_first_error_ends_a_pipe(talk):
    code, output = talk("/nonsense", "never asked")
    assert code == 2 and output.out == ""
    assert output.err.splitlines()[-1] == (
        "deft-jax: error: there is no command '/nonsense'; /help lists them, and a"
        " message that begins with / is written //"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/back", "nothing was asked so far"),
        ("/back 2", "/back: expected nothing behind it, got '2'"),
        ("/fork", "/fork: expected a number of at least 1, got ''"),
        ("/fork 2", "nothing was asked so far"),
        ("/pick x", "/pick: expected a number of at least 1, got 'x'"),
        ("/save", "/save: expected the name of a file"),
    ],
)
def test_what_cannot_be_done_says_why(line, message):
    talk = Chat(cast(Answerer, None), Conversation(), Output(print, print))
    with pytest.raises(DeftError, match=message):
        talk.take(Entry(line))


@pytest.mark.usefixtures("opened")
def test_errors_and_ctrl_c_at_a_prompt_end_nothing_for_a_person(monkeypatch, capsys):
    entered = iter([KeyboardInterrupt, "/nonsense", "/save /no/such/file", EOFError])

    def enter(prompt):
        line = next(entered)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(chat, "is_terminal", lambda: True)
    monkeypatch.setattr(chat, "history_path", lambda: None)
    monkeypatch.setattr("builtins.input", enter)
    assert main(["chat", *SHORT]) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[-4] == "(Ctrl-D or /quit ends the chat)"
    assert told[-3].startswith("deft-jax: error: there is no command '/nonsense'")
    assert told[-2:] == [
        "deft-jax: error: /no/such/file: No such file or directory",
        "",
    ]


def test_more_forks_than_there_is_room_for_name_the_numbers(talk):
    code, output = talk("question", "/fork 30")
    assert code == 2
    assert "--max-forks 30" in output.err.splitlines()[-1]


def entries(*lines):
    """Return what is read from some lines."""
    rest = list(lines)

    def read_line(prompt):
        if not rest:
            raise EOFError
        return rest.pop(0)

    found = []
    while (entry := read_entry(read_line)) is not None:
        found.append((entry.text, entry.is_block))
    return found


def test_lines_make_messages():
    assert entries("a", "b\\", "c\\", "d", "") == [
        ("a", False),
        ("b\nc\nd", False),
        ("", False),
    ]
    assert entries('"""', "/quit", "x\\", '"""', "y") == [
        ("/quit\nx\\", True),
        ("y", False),
    ]
    assert entries('"""', "open") == [("open", True)]
    assert entries("open\\") == [("open", False)]


def test_pick_needs_a_fork():
    conversation = Conversation()
    conversation.add("a", "b")
    with pytest.raises(DeftError, match="/fork N gives N"):
        conversation.pick(1)
    conversation.offer(["c", "d"])
    with pytest.raises(DeftError, match="from 1 to 2, got 3"):
        conversation.pick(3)
    conversation.pick(2)
    assert conversation.messages()[1]["content"] == "d"
    assert conversation.asking_again() == [{"role": "user", "content": "a"}]


def test_history_that_cannot_be_kept_is_not(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    lines = TerminalLines(tmp_path / "file" / "history")
    monkeypatch.setattr("builtins.input", lambda prompt: "hello")
    assert lines("> ") == "hello"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert history_path() == tmp_path / "deft-jax" / "chat_history"
