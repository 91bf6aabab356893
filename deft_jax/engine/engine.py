"""The engine: prompts and a strategy in, trees out."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from deft_jax.capacity import Capacity
from deft_jax.engine.beside import run_beside
from deft_jax.engine.call import Call
from deft_jax.engine.capacity_choice import CapacityChoice
from deft_jax.engine.decode_loop import DecodeLoop
from deft_jax.engine.driver import Driver
from deft_jax.engine.event_log import EventLog
from deft_jax.engine.handle import RequestHandle
from deft_jax.engine.host_tree import Tokenizer
from deft_jax.engine.pin import Pin
from deft_jax.engine.progress import Progress
from deft_jax.engine.prompts import Prompt, check_token_ids, list_prompts
from deft_jax.engine.reading import Reading
from deft_jax.engine.request import Request
from deft_jax.engine.runner import Runner
from deft_jax.engine.session import Session
from deft_jax.engine.widths import chunk_widths, least_width, row_widths
from deft_jax.engine.work import Work
from deft_jax.errors import DeftError
from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TokenEvent
from deft_jax.runtime.attention_method import AttentionMethod, as_method
from deft_jax.runtime.forward import Model
from deft_jax.runtime.prefill import NUM_TOP
from deft_jax.runtime.state import DecodeState
from deft_jax.sampling.noise import ROOT_KEY
from deft_jax.sampling.numbers import as_integer
from deft_jax.sampling.params import Sampling
from deft_jax.sampling.request_table import make_request_table
from deft_jax.strategies.checked_strategy import checked
from deft_jax.strategies.parallel import BestOfN
from deft_jax.strategies.protocol import Strategy
from deft_jax.strategies.traits import runs_at_any_width


class Engine:
    """Decodes trees with one model; keeps its KV pool and what it holds.

    Requests may be submitted from any thread while others run; `generate` is a call
    whose requests run to their ends. One thread of the engine's own runs them all, and
    lives while there are any: callbacks are called there, and must not wait for a
    request of the same engine.

    Prompts and the paths of ended requests stay in the pool until it runs short: a
    later prompt that begins like one of them is fed from where they part.

    Programs are compiled for each capacity. `deft_jax.enable_compilation_cache` keeps
    them for other processes, as the command line does.

    Attributes:
        model: the network, such as a `deft_jax.models.families.llama.Llama`.
        tokenizer: turns text into token ids and back, such as a
            `deft_jax.models.tokenizers.tokenizer.Tokenizer`.
        method: stores KV and attends.
        runner: owns the decode state and runs the compiled programs.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        capacity: Capacity | None = None,
        implementation: str | AttentionMethod | None = None,
        prefix_cache: bool = True,
        memory: float | None = None,
        debug: bool = False,
        event_log: str | Path | None = None,
    ):
        """Set the engine up; nothing is allocated before the first call.

        Args:
            model: the network.
            tokenizer: turns text into token ids and back.
            capacity: what the engine holds at once; by default what calls need.
            implementation: implementation of `tree_attention`, None for the best of
                the device; or another way to store KV and attend.
            prefix_cache: false to forget every prompt and path with its request.
            memory: share of the device's free memory to use for the KV pool where no
                capacity is given, above 0 and at most 1; None for what calls need.
            debug: true to check every plan of every planner, and the forest between
                bursts; slow.
            event_log: file that events are added to as JSON lines, None for none.

        Raises:
            DeftError: an argument is of the wrong type.
        """
        _check_type("capacity", capacity, Capacity | None, "a deft_jax.Capacity")
        _check_memory(memory)
        self.tokenizer = tokenizer
        self.method = as_method(implementation)
        self.runner = self._create_runner(model)
        self._debug = debug
        self._choice = CapacityChoice(self.runner, capacity, memory, prefix_cache)
        self._log = EventLog(event_log)
        self._work = Work(self.runner, tokenizer, shares=prefix_cache, log=self._log)
        self._loop = DecodeLoop(self._work, self._choice.choose, checks=debug)
        self._driver = Driver(self._loop)
        self._beginning: Future[None] | None = None

    def _create_runner(self, model: Model) -> Runner:
        """Return what owns the state; for engines that measure what it does."""
        return Runner(model, self.method)

    @property
    def capacity(self) -> Capacity | None:
        """What the engine holds at once; None before the first call if not given."""
        return self._choice.fixed or self._work.forest.capacity

    @property
    def state(self) -> DecodeState:
        """The decode state on the device, which the runner owns."""
        return self.runner.state

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        strategy: Strategy | None = None,
        sampling: Sampling | None = None,
        *,
        priority: int = 0,
        on_token: Callable[[TokenEvent], None] | None = None,
        on_status: Callable[[Status], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[GenerationTree]:
        """Grow one tree per prompt, all of them together.

        A request that cannot go on ends alone: its tree has what there is, its open
        branches (or the prompt, if there are none) say why in `finish_reason`, and
        `notice` gives the numbers. The reasons are "capacity" where the pool is too
        small for it alone, and "not-finite" where the model's numbers became NaN or
        infinite.

        Args:
            prompts: one prompt or several; a list of ids is one prompt.
            strategy: how the trees grow; one greedy or sampled branch by default.
            sampling: how tokens are chosen and when branches end.
            priority: requests of higher priority start first and give way last.
            on_token: called for every token, in order, while decoding runs.
            on_status: called when the phase or the counters change.
            should_stop: asked between bursts of steps; true ends the call with what
                there is, the open branches marked "interrupted".

        Returns:
            A tree per prompt.

        Raises:
            CapacityError: a prompt does not fit the context or the engine's capacity,
                or the device has too little memory.
            DeftError: a prompt is empty, an argument cannot be used, or the strategy's
                plans cannot be carried out.
        """
        self._await_beginning()
        requests = self._requests(prompts, strategy, sampling, priority=priority)
        call = self._call(requests, on_token, on_status, should_stop)
        self._driver.submit(call)
        try:
            call.wait()
        except BaseException:
            for request in requests:
                call.cancel(request.index)
            raise
        return [handle.result() for handle in call.handles]

    def session(
        self, *, sampling: Sampling | None = None, priority: int = 0
    ) -> Session:
        """Begin a session: a program over branches of trees that outlive each request.

        Args:
            sampling: how tokens are chosen where an operation does not say.
            priority: priority of all its requests; higher ones go first.

        Returns:
            The session, a context manager.

        Raises:
            DeftError: an argument is of the wrong type.
        """
        return Session(self, sampling=sampling, priority=priority)

    def submit(
        self,
        prompt: Prompt,
        strategy: Strategy | None = None,
        sampling: Sampling | None = None,
        *,
        key: int = ROOT_KEY,
        priority: int = 0,
        on_token: Callable[[TokenEvent], None] | None = None,
        pin: bool = False,
    ) -> RequestHandle[GenerationTree]:
        """Let one tree grow beside whatever else runs; safe from any thread.

        Args:
            prompt: text or token ids.
            strategy: how the tree grows; one branch by default.
            sampling: how tokens are chosen and when branches end.
            key: sampling key of the root, a uint32; requests with equal prompts, seeds
                and keys draw the same tokens.
            priority: requests of higher priority start first and give way last.
            on_token: called for every token on the engine's thread.
            pin: true to keep the KV of its paths until `unpin`; see the handle's `pin`.

        Returns:
            What the result is waited for with.

        Raises:
            CapacityError: the prompt does not fit the context or the capacity.
            DeftError: an argument cannot be used.
        """
        self._await_beginning()
        key = as_integer("key", key, 0, 2**32 - 1)
        requests = self._requests(
            _one_prompt(prompt), strategy, sampling, priority=priority, key=key, pin=pin
        )
        return self._begin(self._call(requests, on_token))

    def read(
        self,
        prompt: Prompt,
        *,
        score_from: int | None = None,
        top: int = 0,
        priority: int = 0,
        pin: bool = False,
    ) -> RequestHandle[Reading]:
        """Feed a prompt and generate nothing; what is cached is not fed again.

        Args:
            prompt: text or token ids.
            score_from: first token of the prompt whose log-probability is wanted, at
                least 1; None for none.
            top: most likely next tokens to tell, at most 20.
            priority: requests of higher priority start first.
            pin: true to keep the prompt's KV until `unpin`.

        Returns:
            What the `Reading` is waited for with.

        Raises:
            CapacityError: the prompt does not fit the context or the capacity.
            DeftError: an argument cannot be used.
        """
        self._await_beginning()
        prompts = _one_prompt(prompt)
        (request,) = self._requests(prompts, priority=priority, pin=pin)
        top = as_integer("top", top, 0, NUM_TOP)
        if score_from is not None:
            score_from = as_integer("score_from", score_from, 1, len(request.prompt))
        request = dataclasses.replace(
            request, strategy=None, score_from=score_from, num_top=top
        )
        return self._begin(self._call([request]))

    def _begin(self, call: Call) -> RequestHandle[Any]:
        """Let the one request of a call run."""
        self._choice.expects_more = call.is_open = True
        self._driver.submit(call)
        return call.handles[0]

    def unpin(self, pin: Pin) -> None:
        """Let the paths that a request has left be evicted; safe from any thread.

        Args:
            pin: the `pin` of a handle; a second time does nothing.

        Raises:
            DeftError: it is no pin.
        """
        _check_type("pin", pin, Pin, "the pin of a handle")
        self._driver.order(lambda: self._work.forest.unpin(pin))

    def statistics(self) -> dict[str, float]:
        """Return what the engine has done since it was made.

        Returns:
            Prompt tokens, those that were cached and their share of all (`hit_rate`),
            bursts and decode steps, chunks, evicted nodes and preempted requests.
        """
        counts = self._log.counts
        prompt, cached = counts["look up tokens"], counts["look up cached"]
        return {
            "requests": counts["submit"],
            "prompt_tokens": prompt,
            "cached_tokens": cached,
            "hit_rate": cached / prompt if prompt else 0.0,
            "chunks": counts["feed"],
            "bursts": counts["burst"],
            "steps": counts["burst steps"],
            "evicted_nodes": counts["evict nodes"],
            "preempted": counts["preempt"],
        }

    def clear_cache(self) -> None:
        """Forget the prompts and paths that no request uses, and free their pages.

        Pinned paths are forgotten too: whoever goes on from them feeds them again.
        """
        self._driver.run_between_turns(self._loop.clear_cache)

    def compile_ahead(
        self,
        prompts: Prompt | Sequence[Prompt],
        strategy: Strategy | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        """Begin to compile what `generate` will need for these arguments.

        What `generate` would refuse is refused now. Then the two steps are compiled on
        threads of their own, or read from the compilation cache, while the caller does
        something else. The arrays of `model` may still be `jax.ShapeDtypeStruct`, so
        that the weights can be loaded meanwhile: set `model` before `generate` is
        called.

        Args:
            prompts: the prompts, or others of the same lengths.
            strategy: how the trees will grow.
            sampling: how tokens will be chosen.

        Raises:
            CapacityError: a prompt does not fit the context or the engine's capacity,
                or the device has too little memory.
            DeftError: an argument cannot be used.
        """
        self._await_beginning()
        requests = self._requests(prompts, strategy, sampling)
        capacity = self._choice.choose(requests, self._work.forest.capacity)
        for request in requests:
            request.check(capacity)
        self.runner.check(capacity)
        first = requests[0]
        assert first.strategy is not None
        planner = first.strategy.planner

        def begin() -> None:
            free = [None] * (capacity.requests - 1)
            table = make_request_table(
                [first.sampling, *free],
                [first.limit, *free],
                self.tokenizer.eos_token_ids,
            )
            at_once = min(len(requests), capacity.requests)
            rows = min(at_once * first.rows, capacity.rows)
            tokens = min(sum(len(r.prompt) for r in requests[:at_once]), capacity.chunk)
            width = least_width(row_widths(capacity), rows)
            if not runs_at_any_width(planner):
                width = capacity.rows
            chunk = least_width(chunk_widths(capacity), tokens)
            self.runner.compile_ahead(capacity, table, planner, width, chunk)

        self._beginning = run_beside(begin)

    @property
    def model(self) -> Model:
        """The network.

        Another one of the same shapes, such as loaded weights in place of their shapes,
        runs the programs that are there. What is cached is forgotten.
        """
        return self.runner.model

    @model.setter
    def model(self, model: Model) -> None:
        self._await_beginning()
        self._driver.run_between_turns(lambda: self._loop.replace_model(model))

    def _await_beginning(self) -> None:
        """Wait until `compile_ahead` has begun all that it begins.

        Raises:
            Exception: it could not.
        """
        beginning, self._beginning = self._beginning, None
        if beginning is not None:
            beginning.result()

    def _call(
        self,
        requests: list[Request],
        on_token: Callable[[TokenEvent], None] | None = None,
        on_status: Callable[[Status], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Call:
        tokens = sum(len(request.prompt) for request in requests)
        progress = Progress(self.model, tokens, on_status)
        return Call(requests, progress, on_token, should_stop)

    def _requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        strategy: Strategy | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> list[Request]:
        """Check the arguments of a call and encode its prompts."""
        strategy = BestOfN(1) if strategy is None else strategy
        sampling = Sampling() if sampling is None else sampling
        least = -(2**31)
        options["priority"] = as_integer(
            "priority", options.get("priority", 0), least, 2**31 - 1
        )
        _check_type("sampling", sampling, Sampling, "a deft_jax.Sampling")
        _check_strategy(strategy)
        sampling.check(self.model.config.vocab_size)
        if self._debug:
            strategy = checked(strategy)
        return [
            self._request(index, prompt, strategy, sampling, options)
            for index, prompt in enumerate(list_prompts(prompts))
        ]

    def _request(
        self,
        index: int,
        prompt: str | list[int],
        strategy: Strategy,
        sampling: Sampling,
        options: dict[str, Any],
    ) -> Request:
        """Encode a prompt and check it against the context and a given capacity."""
        is_text = isinstance(prompt, str)
        ids = self.tokenizer.encode(prompt) if is_text else prompt
        config = self.model.config
        check_token_ids(index, ids, config.vocab_size, config.context_length)
        decode = self.tokenizer.decode
        text = prompt if is_text else decode(ids, skip_special_tokens=False)
        limit = min(sampling.max_new_tokens, config.context_length - len(ids))
        request = Request(
            index=index,
            prompt=list(ids),
            text=text,
            limit=limit,
            sampling=sampling,
            strategy=strategy,
            **options,
        )
        if self._choice.fixed is not None:
            request.check(self._choice.fixed)
        return request


def _one_prompt(prompt: Any) -> list[str | list[int]]:
    """Return the one prompt there is, in a list.

    Raises:
        DeftError: there are several, or none.
    """
    prompts = list_prompts(prompt)
    if len(prompts) != 1:
        raise DeftError(f"expected 1 prompt, got {len(prompts)}; submit one at a time")
    return prompts


def _check_memory(memory: Any) -> None:
    is_number = isinstance(memory, int | float) and not isinstance(memory, bool)
    if memory is not None and not (is_number and 0 < memory <= 1):
        raise DeftError(
            f"memory must be a share above 0 and at most 1, got {memory!r:.60}"
        )


def _check_type(name: str, value: Any, kind: Any, expected: str) -> None:
    if not isinstance(value, kind):
        raise DeftError(f"{name} must be {expected}, got {value!r:.60}")


def _check_strategy(strategy: Any) -> None:
    """Check that an object has what a strategy has.

    Raises:
        DeftError: it has not.
    """
    members = ("rows", "nodes", "planner", "conclude")
    missing = [name for name in members if not hasattr(strategy, name)]
    if missing or isinstance(strategy, type):
        raise DeftError(
            f"strategy must be an object such as BestOfN(4), got {strategy!r:.60}, "
            f"which has no {', '.join(missing) or 'instance'}"
        )
