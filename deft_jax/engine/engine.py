"""The engine: prompts and a strategy in, trees out."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from deft_jax.capacity import DEFAULT_ROWS, Capacity
from deft_jax.engine.beside import run_beside
from deft_jax.engine.device_memory import is_out_of_memory
from deft_jax.engine.generation import Generation
from deft_jax.engine.host_tree import Tokenizer
from deft_jax.engine.prompts import Prompt, check_token_ids, list_prompts
from deft_jax.engine.request import Request
from deft_jax.engine.runner import Runner
from deft_jax.engine.scheduler import Scheduler
from deft_jax.errors import CapacityError, DeftError
from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TokenEvent
from deft_jax.runtime.attention_method import AttentionMethod, as_method
from deft_jax.runtime.forward import Model
from deft_jax.runtime.state import DecodeState
from deft_jax.sampling.params import Sampling
from deft_jax.sampling.request_table import make_request_table
from deft_jax.strategies.parallel import BestOfN
from deft_jax.strategies.protocol import Strategy


class Engine:
    """Decodes trees with one model; keeps its KV pool between calls.

    An engine is neither thread-safe nor re-entrant: one call of `generate` runs at a
    time, and callbacks must not call the engine that calls them.

    Programs are compiled for each capacity. `deft_jax.enable_compilation_cache` keeps
    them for other processes, as the command line does.

    Attributes:
        model: the network, such as a `deft_jax.models.families.llama.Llama`.
        tokenizer: turns text into token ids and back, such as a
            `deft_jax.models.tokenizers.tokenizer.Tokenizer`.
        capacity: what the engine holds at once; None before the first call if it was
            left to be taken from the requests.
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
    ):
        """Set the engine up; nothing is allocated before the first call.

        Args:
            model: the network.
            tokenizer: turns text into token ids and back.
            capacity: what the engine holds at once; by default what calls need.
            implementation: implementation of `tree_attention`, None for the best of
                the device; or another way to store KV and attend.

        Raises:
            DeftError: an argument is of the wrong type.
        """
        _check_type("capacity", capacity, Capacity | None, "a deft_jax.Capacity")
        self.tokenizer = tokenizer
        self.capacity = capacity
        self.method = as_method(implementation)
        self.runner = Runner(model, self.method)
        self._fixed = capacity is not None
        self._beginning: Future[None] | None = None

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
        on_token: Callable[[TokenEvent], None] | None = None,
        on_status: Callable[[Status], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[GenerationTree]:
        """Grow one tree per prompt, all of them together.

        A request that cannot go on ends alone: its tree has what there is, its open
        branches (or the prompt, if there are none) say why in `finish_reason`, and
        `notice` gives the numbers. The reasons are "capacity" where the pool ran out,
        which today ends every request that is decoding, and "not-finite" where the
        model's numbers became NaN or infinite.

        Args:
            prompts: one prompt or several; a list of ids is one prompt.
            strategy: how the trees grow; one greedy or sampled branch by default.
            sampling: how tokens are chosen and when branches end.
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
        strategy = BestOfN(1) if strategy is None else strategy
        sampling = Sampling() if sampling is None else sampling
        self._await_beginning()
        requests = self._requests(prompts, strategy, sampling)
        try:
            self._prepare(requests, strategy)
            generation = Generation(
                self.runner, self.tokenizer, strategy, sampling, requests
            )
            return generation.run(on_token, on_status, should_stop)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.runner.reset()
            raise CapacityError(_out_of_memory(error)) from None

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
        strategy = BestOfN(1) if strategy is None else strategy
        sampling = Sampling() if sampling is None else sampling
        self._await_beginning()
        requests = self._requests(prompts, strategy, sampling)
        self._fit(requests, strategy)
        capacity = self.capacity
        assert capacity is not None
        self.runner.check(capacity)

        def begin() -> None:
            scheduler = Scheduler(requests, capacity)
            eos = self.tokenizer.eos_token_ids
            limits = scheduler.limits()
            samplings = [sampling if limit else None for limit in limits]
            table = make_request_table(samplings, limits, eos)
            self.runner.compile_ahead(
                capacity, table, scheduler.chunk([]), strategy.planner
            )

        self._beginning = run_beside(begin)

    @property
    def model(self) -> Model:
        """The network.

        Another one of the same shapes, such as loaded weights in place of their shapes,
        runs the programs that are there.
        """
        return self.runner.model

    @model.setter
    def model(self, model: Model) -> None:
        self._await_beginning()
        self.runner.replace_model(model)

    def _await_beginning(self) -> None:
        """Wait until `compile_ahead` has begun all that it begins.

        Raises:
            Exception: it could not.
        """
        beginning, self._beginning = self._beginning, None
        if beginning is not None:
            beginning.result()

    def _requests(
        self, prompts: Prompt | Sequence[Prompt], strategy: Strategy, sampling: Sampling
    ) -> list[Request]:
        """Check the arguments of a call and encode its prompts."""
        _check_type("sampling", sampling, Sampling, "a deft_jax.Sampling")
        _check_strategy(strategy)
        sampling.check(self.model.config.vocab_size)
        return [
            self._request(index, prompt, strategy, sampling)
            for index, prompt in enumerate(list_prompts(prompts))
        ]

    def _request(
        self, index: int, prompt: str | list[int], strategy: Strategy, sampling
    ) -> Request:
        """Encode a prompt and check it against the context."""
        is_text = isinstance(prompt, str)
        ids = self.tokenizer.encode(prompt) if is_text else prompt
        config = self.model.config
        check_token_ids(index, ids, config.vocab_size, config.context_length)
        decode = self.tokenizer.decode
        text = prompt if is_text else decode(ids, skip_special_tokens=False)
        limit = min(sampling.max_new_tokens, config.context_length - len(ids))
        return Request(index, ids, text, limit, strategy.rows, strategy.nodes)

    def _prepare(self, requests: list[Request], strategy: Strategy) -> None:
        """Make the state fit the requests, and reset what belongs to one call."""
        self._fit(requests, strategy)
        assert self.capacity is not None
        self.runner.prepare(self.capacity, strategy.planner)

    def _fit(self, requests: list[Request], strategy: Strategy) -> None:
        """Choose the capacity unless it is fixed, and check every request against it.

        Raises:
            CapacityError: a request does not fit.
        """
        if not self._fixed:
            self._grow(requests, strategy)
        assert self.capacity is not None
        for request in requests:
            request.check(self.capacity)

    def _grow(self, requests: list[Request], strategy: Strategy) -> None:
        """Choose a capacity that the requests need, unless the present one does.

        Where the memory is too little for all requests at once, fewer take turns.
        """
        max_rows = DEFAULT_ROWS
        while True:
            needed = Capacity.for_requests(
                [len(request.prompt) for request in requests],
                max(request.limit for request in requests),
                strategy.rows,
                strategy.nodes,
                max_rows=max_rows,
            )
            if self.capacity is not None and self.capacity.covers(needed):
                return
            self.runner.reset()
            one_at_a_time = len(requests) == 1 or max_rows < 2 * strategy.rows
            if one_at_a_time or self.runner.fits(needed):
                break
            max_rows //= 2
        self.capacity = needed


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


def _out_of_memory(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (
        "the device ran out of memory; lower n, max_new_tokens or the context: "
        f"{text:.200}"
    )
