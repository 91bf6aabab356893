"""One request of a chat: it is listened to, stopped, and if need be given up."""

import time
from collections.abc import Callable
from concurrent.futures import wait

import deft_jax
from deft_jax.cli.interrupt import Interrupt
from deft_jax.engine.beside import run_beside
from deft_jax.results.counters import Status
from deft_jax.results.tree_node import TokenEvent

_QUIET_S, _QUIET_AGAIN_S = 2.0, 10.0
"""Seconds without a word before the user is told what goes on, first and later."""

_PATIENCE_S = 2.0
"""Seconds that an answer has to end after it was stopped, before it is given up."""

_LOOK_S = 0.05


class ChatRequest:
    """Runs `Engine.generate` on a thread of its own and waits for it.

    The engine cannot stop while it compiles on its own thread, which may take a minute.
    A request that does not end soon after a signal is left to end by itself, and the
    next one waits for it in the engine.

    Attributes:
        text: what the only branch has said so far; empty if there are several.
        stopped_by: number of the signal that stopped it, None without one.
    """

    def __init__(self, write: Callable[[str], object], note: Callable[[str], object]):
        """Prepare to listen.

        Args:
            write: called with the text of the only branch as it comes, from the
                engine's thread.
            note: called with a line about what takes long.
        """
        self.text = ""
        self.stopped_by: int | None = None
        self._write, self._note = write, note
        self._status: Status | None = None
        self._is_given_up = False
        self._heard_at = 0.0

    def run(
        self,
        engine: "deft_jax.Engine",
        prompt: list[int],
        n: int,
        sampling: "deft_jax.Sampling",
    ) -> "deft_jax.GenerationTree | None":
        """Return the tree with what there is when it ends; None if it was given up.

        Args:
            engine: decodes.
            prompt: token ids.
            n: branches.
            sampling: how tokens are chosen.

        Raises:
            DeftError: the engine refuses the request.
        """
        self._heard_at = time.monotonic()
        # A second signal has nothing to add.
        with (
            Interrupt(exit_now=lambda code: None) as interrupt,
            interrupt.softly(lambda number: None),
        ):
            future = run_beside(
                lambda: engine.generate(
                    [prompt],
                    deft_jax.BestOfN(n),
                    sampling,
                    on_token=self._on_token if n == 1 else None,
                    on_status=self._on_status,
                    should_stop=interrupt.is_requested,
                )
            )
            stopped_at = None
            while not wait([future], _LOOK_S).done:
                now = time.monotonic()
                if interrupt.is_requested():
                    stopped_at = stopped_at or now
                    if now > stopped_at + _PATIENCE_S:
                        self._is_given_up = True
                        break
                else:
                    self._break_silence(now)
        self.stopped_by = interrupt.requested
        if self._is_given_up:
            return None
        [tree] = future.result()
        if n == 1:  # Text that might begin a stop string is held back until the end.
            self._say(tree.path_text(tree.best()).removeprefix(self.text))
        return tree

    def _on_token(self, event: TokenEvent) -> None:
        if not self._is_given_up:
            self._say(event.text)

    def _on_status(self, status: Status) -> None:
        self._status = status

    def _say(self, text: str) -> None:
        self._heard_at = time.monotonic()
        self.text += text
        self._write(text)

    def _break_silence(self, now: float) -> None:
        """Tell the user what goes on where nothing was heard for a while."""
        if now < self._heard_at + _QUIET_S:
            return
        self._heard_at = now + _QUIET_AGAIN_S - _QUIET_S
        status = self._status
        if status is None:
            self._note("waiting until the engine is ready")
        elif status.phase == "compile":
            self._note(f"{status.message}; the first time takes longest")
        elif self.text == "":
            self._note(status.message or f"{status.generated_tokens} tokens so far")
