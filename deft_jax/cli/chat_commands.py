"""The commands of a chat: what each does to the conversation."""

from collections.abc import Callable
from dataclasses import dataclass

from deft_jax.cli.chat_answers import Answerer, Reply
from deft_jax.cli.chat_input import Entry
from deft_jax.cli.conversation import Conversation
from deft_jax.errors import DeftError
from deft_jax.results.terminal_text import head, one_line, printable

_EXCERPT_CELLS = 60

HELP = r"""/fork N       N other answers to the last question, numbered
/pick K       go on with answer K of the last fork
/back         drop the last turn
/trim         drop the oldest turn, to make room in the context
/system TEXT  set the system prompt and begin anew; without TEXT, none
/save FILE    write the conversation as JSON, messages with roles
/help         show this
/quit         end; Ctrl-D does so too, and Ctrl-C stops an answer
A message that begins with / is written //. A line that ends with \ goes on in the
next one; lines between two lines of triple quotation marks are one message."""


@dataclass(frozen=True)
class Output:
    """Where a chat writes to.

    Attributes:
        text: takes what the model says, in pieces that hold line ends.
        note: takes a line about the chat.
    """

    text: Callable[[str], object]
    note: Callable[[str], object]


class Chat:
    """Takes entries one by one, and asks, answers or obeys.

    Attributes:
        conversation: what was said.
    """

    def __init__(self, answerer: Answerer, conversation: Conversation, output: Output):
        """Begin a chat.

        Args:
            answerer: asks the model.
            conversation: what it begins with.
            output: where answers and notes go.
        """
        self.conversation = conversation
        self._answerer, self._output = answerer, output
        self._commands: dict[str, Callable[[str], object]] = {
            "/fork": self._fork,
            "/pick": self._pick,
            "/back": self._back,
            "/trim": self._trim,
            "/system": self._begin,
            "/save": self._save,
            "/help": lambda _: self._output.note(HELP),
        }

    def take(self, entry: Entry) -> bool:
        """Do what was entered; return false if that was to end the chat.

        Raises:
            CapacityError: the conversation has become too long, or N is too large.
            DeftError: there is no such command, or it cannot be done.
            OSError: a file cannot be written.
        """
        text = entry.text
        if not text.strip():
            return True
        if entry.is_block or not text.startswith("/"):
            self._ask(text)
        elif text.startswith("//"):
            self._ask(text[1:])
        else:
            name, _, rest = text.strip().partition(" ")
            if name == "/quit":
                return False
            self._obey(name, rest.strip())
        return True

    def _obey(self, name: str, rest: str) -> None:
        command = self._commands.get(name)
        if command is None:
            raise DeftError(
                f"there is no command {name!r:.40}; /help lists them, and a message"
                " that begins with / is written //"
            )
        command(rest)

    def _ask(self, question: str) -> None:
        written = ""

        def write(text: str) -> None:
            nonlocal written
            written += text
            self._output.text(printable(text))

        messages = self.conversation.asking(question)
        reply = self._answerer.ask(messages, write=write, note=self._remark)
        if reply.texts:  # First of all: another Ctrl-C may come at any time.
            self.conversation.add(question, reply.texts[0])
        if reply.texts and not written.endswith("\n"):
            self._output.text("\n")
        self._tell(reply)

    def _fork(self, rest: str) -> None:
        n = _number("/fork", rest)
        messages = self.conversation.asking_again()
        if n > 1 and self._answerer.sampling.temperature == 0:
            self._remark("--temperature 0 makes the answers equal")
        reply = self._answerer.ask(messages, n, note=self._remark)
        if reply.texts:
            self.conversation.offer(reply.texts)
        for number, text in enumerate(reply.texts, 1):
            self._output.text(f"[{number}] {printable(text).strip()}\n")
        self._tell(reply)

    def _pick(self, rest: str) -> None:
        number = _number("/pick", rest)
        self.conversation.pick(number)
        self._remark(f"going on with answer {number}")

    def _back(self, rest: str) -> None:
        _expect_nothing("/back", rest)
        self._tell_dropped(self.conversation.back().question)

    def _trim(self, rest: str) -> None:
        _expect_nothing("/trim", rest)
        self._tell_dropped(self.conversation.trim().question)

    def _begin(self, rest: str) -> None:
        self.conversation.begin(rest)
        self._remark("a new conversation")

    def _save(self, rest: str) -> None:
        if not rest:
            raise DeftError("/save: expected the name of a file, got none")
        path = self.conversation.save(rest)
        count = len(self.conversation.messages())
        self._remark(f"{count} messages written to {path}")

    def _tell(self, reply: Reply) -> None:
        for note in reply.notes:
            self._remark(note)

    def _remark(self, text: str) -> None:
        self._output.note(f"({one_line(text)})")

    def _tell_dropped(self, question: str) -> None:
        self._remark(f"dropped: {head(one_line(question), _EXCERPT_CELLS)}")


def _number(name: str, text: str) -> int:
    """Return the number behind a command.

    Raises:
        DeftError: it is none of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise DeftError(f"{name}: expected a number of at least 1, got {text!r:.40}")
    return int(text)


def _expect_nothing(name: str, text: str) -> None:
    if text:
        raise DeftError(f"{name}: expected nothing behind it, got {text!r:.40}")
