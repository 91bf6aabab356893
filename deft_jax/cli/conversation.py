"""A conversation: what was asked and answered, without a model."""

import dataclasses
import json
import os
from pathlib import Path

from deft_jax.errors import DeftError

Message = dict[str, str]
"""A turn as chat templates take it, with `role` and `content`."""


@dataclasses.dataclass
class Turn:
    """A question and its answer.

    Attributes:
        question: what the user wrote.
        answer: what the conversation goes on with.
        others: answers to the same question that `pick` chooses from.
    """

    question: str
    answer: str
    others: list[str] = dataclasses.field(default_factory=list)


class Conversation:
    """The system prompt and the turns so far, oldest first.

    Attributes:
        system: the system prompt, None for none of the user's.
        turns: each with its answer.
    """

    def __init__(self, system: str | None = None):
        """Begin with no turn.

        Args:
            system: the system prompt; None, or an empty text, for none.
        """
        self.begin(system)

    def begin(self, system: str | None) -> None:
        """Forget every turn, and take another system prompt."""
        self.system = system or None
        self.turns: list[Turn] = []

    def messages(self) -> list[Message]:
        """Return all messages, the last answer among them."""
        messages = [] if self.system is None else [_message("system", self.system)]
        for turn in self.turns:
            messages.append(_message("user", turn.question))
            messages.append(_message("assistant", turn.answer))
        return messages

    def asking(self, question: str) -> list[Message]:
        """Return all messages with a question behind them."""
        return [*self.messages(), _message("user", question)]

    def asking_again(self) -> list[Message]:
        """Return all messages up to the last question.

        Raises:
            DeftError: nothing was asked so far.
        """
        self._last()
        return self.messages()[:-1]

    def add(self, question: str, answer: str) -> None:
        """Add a turn."""
        self.turns.append(Turn(question, answer))

    def offer(self, answers: list[str]) -> None:
        """Keep other answers to the last question, for `pick`."""
        self._last().others = answers

    def pick(self, number: int) -> None:
        """Go on with one of the answers that were offered, counted from 1.

        Raises:
            DeftError: there is no such answer.
        """
        turn = self._last()
        if not turn.others:
            raise DeftError("there are no answers to pick from; /fork N gives N")
        if not 1 <= number <= len(turn.others):
            raise DeftError(
                f"/pick: expected an answer from 1 to {len(turn.others)}, got {number}"
            )
        turn.answer = turn.others[number - 1]

    def back(self) -> Turn:
        """Drop the last turn, and return it.

        Raises:
            DeftError: there is none.
        """
        self._last()
        return self.turns.pop()

    def trim(self) -> Turn:
        """Drop the oldest turn, and return it.

        Raises:
            DeftError: there is none.
        """
        self._last()
        return self.turns.pop(0)

    def save(self, path: str) -> Path:
        """Write the messages as JSON; return the path, with the user's home in it.

        Raises:
            OSError: the file cannot be written.
        """
        document = {"messages": self.messages()}
        text = json.dumps(document, ensure_ascii=False, indent=2)
        target = Path(os.path.expanduser(path))  # Never fails, unlike that of `Path`.
        target.write_text(text + "\n", "utf-8", errors="backslashreplace")
        return target

    def _last(self) -> Turn:
        if not self.turns:
            raise DeftError("nothing was asked so far")
        return self.turns[-1]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
