"""What is under way: requests that wait or run, and the calls that hear of them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deft_jax.engine.call import Call, Ended
from deft_jax.engine.event_log import EventLog
from deft_jax.engine.forest import Forest
from deft_jax.engine.host_tree import HostTree, Tokenizer
from deft_jax.engine.live_request import LiveRequest
from deft_jax.engine.reading import Reading
from deft_jax.engine.request import Request
from deft_jax.engine.runner import Runner
from deft_jax.engine.scheduler import Waiting, WaitingList
from deft_jax.sampling.request_table import RequestTable, make_request_table
from deft_jax.strategies.traits import ends_branches


class Work:
    """The requests of an engine, shared by all parts of its loop.

    Attributes:
        runner: owns the state and the programs.
        tokenizer: turns tokens into text.
        forest: who sits where, what is cached, what is to change.
        waiting: requests without a slot.
        calls: the calls that have a request here.
        log: what events are written to.
        short: requests for which pages or nodes were short, the first first.
        is_held: true while no request may start or go on, since one gave way.
        order: lets something be done between two turns; safe from any thread.
    """

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer, *, shares: bool, log: EventLog
    ):
        """Begin with nothing.

        Args:
            runner: owns the state and the programs.
            tokenizer: turns tokens into text.
            shares: true to cache prompts and paths.
            log: what events are written to.
        """
        self.runner, self.tokenizer, self.log = runner, tokenizer, log
        self.forest = Forest(runner, shares)
        self.waiting = WaitingList()
        self.calls: list[Call] = []
        self.short: list[LiveRequest] = []
        self.is_held = False
        self.order: Callable[[Callable[[], None]], None] = lambda do: do()
        self._table: RequestTable | None = None

    def submit(self, call: Call) -> None:
        """Take the requests of a call; they wait for their turn."""
        self.calls.append(call)
        for request in call.requests:
            self.waiting.add(request, call)
            self.log.add("submit", request=request.index, tokens=len(request.prompt))

    @property
    def is_open(self) -> bool:
        """True while other requests may follow those that are there."""
        return any(call.is_open for call in self.calls)

    def lives_in_order(self) -> list[LiveRequest]:
        """Return the requests with a slot, by priority and then by their start."""
        lives = self.forest.lives.values()
        return sorted(lives, key=lambda live: (-live.request.priority, live.number))

    def new_tree(self, request: Request) -> HostTree:
        """Return the tree of a request, with its prompt alone."""
        return HostTree(
            request.index,
            request.prompt,
            request.text,
            self.tokenizer,
            request.sampling.stop,
            math.inf if ends_branches(request.strategy) else request.limit,
            request.sampling.logprobs,
        )

    def note_change(self) -> None:
        """Note that a request has come or gone."""
        self._table = None

    def request_table(self) -> RequestTable:
        """Return what the device is told of the requests, made when they change."""
        if self._table is None:
            slots = range(self.forest.rooms.requests)
            lives = [self.forest.lives.get(slot) for slot in slots]
            self._table = make_request_table(
                [live and live.request.sampling for live in lives],
                [live and live.request.limit for live in lives],
                self.tokenizer.eos_token_ids,
            )
        return self._table

    def clear(self) -> list[LiveRequest]:
        """Forget all that is on the device; return the requests that were there."""
        lives = list(self.forest.lives.values())
        self.short = []
        self._table = None
        self.forest.reset()
        return lives

    # Ends.

    def leave(self, live: LiveRequest) -> None:
        """Take a request's seat, and give its result to its call."""
        pin = live.pin
        is_read = live.above is not None and live.ends_as is None
        if live.request.strategy is None and live.request.pin and is_read:
            pin = self.forest.pin([live.holder])
        self.forest.leave(live)
        self._table, self.is_held = None, False
        self.log.add("finish", request=live.request.index, slot=live.slot)
        reading = Reading(tuple(live.scores), live.top)
        ended = Ended(
            live.request.index, live.tree, live.notice, live.ends_as, pin, reading
        )
        self.end(live.call, ended)

    def end_early(self, live: LiveRequest) -> None:
        """End a request for a reason of the host's, which `ends_as` gives."""
        assert live.ends_as is not None
        live.tree.fail(live.ends_as)
        self.forest.drop(live)
        self.leave(live)

    def end_marked(self) -> None:
        """End the requests that the host has found a reason to end."""
        for live in list(self.forest.lives.values()):
            if live.ends_as is not None:
                self.end_early(live)

    def interrupt_waiting(self, is_out: Callable[[Waiting], bool]) -> None:
        """End some requests that have not started."""
        for waiting in self.waiting.remove(is_out):
            tree = self.new_tree(waiting.request)
            tree.fail("interrupted")
            ended = Ended(waiting.request.index, tree, ends_as="interrupted")
            self.end(waiting.call, ended)

    def end(self, call: Call, ended: Ended) -> None:
        """Give a request's result to its call, unless that has failed."""
        if call.is_done:
            return
        with self.listening(call):
            call.end(ended)
        if call.is_done and call in self.calls:
            self.calls.remove(call)

    def fail_call(self, call: Call, error: BaseException) -> None:
        """Give an error to one call; its requests leave with the next edit."""
        self.waiting.remove(lambda waiting: waiting.call is call)
        for live in self.forest.lives.values():
            if live.call is call:
                live.ends_as = live.ends_as or "interrupted"
        if call in self.calls:
            self.calls.remove(call)
        call.fail(error)

    def fail_not_finite(
        self, live: LiveRequest, what: str, *, is_shared: bool = False
    ) -> None:
        """Note that a request's numbers are not finite, so that it ends.

        Args:
            live: the request.
            what: its numbers, in words.
            is_shared: true if they may be those of tokens that others could share.
        """
        tokens = sum(len(branch.logprobs) for branch in live.tree.branches.values())
        live.notice = (
            f"{what} became NaN or infinite after {len(live.request.prompt)} prompt "
            f"tokens and {tokens} generated ones; what was generated is kept; check "
            f"the model's weights, or use a wider dtype than {self.runner.model.dtype}"
        )
        live.ends_as = "not-finite"
        live.tree.fail("not-finite")
        if is_shared and live.fed_node is not None:
            # What is stored of it is not what the model says: nobody may share it.
            live.fed_node.is_fed = False

    @contextmanager
    def listening(self, call: Call) -> Iterator[None]:
        """Let an error of a listener end its call alone."""
        try:
            yield
        except BaseException as error:
            self.fail_call(call, error)
