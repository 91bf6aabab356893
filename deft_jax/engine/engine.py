"""The engine: prompts and a strategy in, trees out."""

import dataclasses
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.engine.generation import Generation
from deft_jax.engine.host_tree import Tokenizer
from deft_jax.engine.request import Request
from deft_jax.errors import CapacityError, DeftError
from deft_jax.results.counters import Status
from deft_jax.results.generation_tree import GenerationTree
from deft_jax.results.tree_node import TokenEvent
from deft_jax.runtime.attention_method import AttentionMethod, as_method
from deft_jax.runtime.branch_keys import BranchKeys
from deft_jax.runtime.prefill import prefill
from deft_jax.runtime.state import DecodeState, Rows, StepLog
from deft_jax.runtime.step import decode
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from deft_jax.strategies.protocol import Planner, Strategy
from deft_jax.tree.state import Tree

LOG_STEPS = 64
"""Most decode steps between two looks of the host."""

Prompt = str | Sequence[int]
"""Text, encoded as it stands, or token ids, such as those of a chat template."""

run_prefill = jax.jit(prefill, static_argnames="method", donate_argnames="state")
GPU_OPTIONS = {
    # The loop over steps and all in it is one command buffer (CUDA graph): the host
    # starts a burst of steps and is free.
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,"
    "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
    # The library's products of few rows read weights faster.
    "xla_gpu_enable_triton_gemm": False,
}
"""Of the compiler for the decode loop on GPUs; they change nothing but speed."""

_DECODE = {"static_argnames": ("planner", "method"), "donate_argnames": "state"}
run_decode = jax.jit(decode, **_DECODE)
run_decode_on_gpu = jax.jit(decode, **_DECODE, compiler_options=GPU_OPTIONS)


def decode_program():
    """The jitted `decode` for the default device."""
    return run_decode_on_gpu if jax.default_backend() == "gpu" else run_decode


class Engine:
    """Decodes trees with one model; keeps its KV pool between calls.

    Attributes:
        model: a `deft_jax.models.families.llama.Llama`.
        tokenizer: a `deft_jax.models.tokenizers.tokenizer.Tokenizer`.
        capacity: what the engine holds at once; None before the first call if it was
            left to be taken from the requests.
        method: stores KV and attends.
    """

    def __init__(
        self,
        model,
        tokenizer: Tokenizer,
        *,
        capacity: Capacity | None = None,
        implementation: str | AttentionMethod | None = None,
    ):
        """Set the engine up; nothing is allocated before the first call.

        Args:
            model: the network.
            tokenizer: of the model.
            capacity: what the engine holds at once; by default what calls need.
            implementation: of `tree_attention`, None for the best of the device; or
                another way to store KV and attend.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.capacity = capacity
        self.method = as_method(implementation)
        self._fixed = capacity is not None
        self._state: DecodeState | None = None
        self._compiled: set[tuple] = set()

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
        """Grows one tree per prompt, all of them together.

        Args:
            prompts: one prompt or several; a list of ids is one prompt.
            strategy: how the trees grow; one greedy or sampled branch by default.
            sampling: how tokens are chosen and when branches end.
            on_token: called for every token, in order, while decoding runs.
            on_status: called when the phase or the counters change.
            should_stop: asked between bursts of steps; true ends the call with what
                there is, the open branches marked "interrupted".

        Returns:
            A tree per prompt. If the pool runs out the branches that were still open
            are marked "capacity" and the tree's notice gives the numbers.

        Raises:
            CapacityError: a prompt does not fit the context, or the engine's capacity.
            DeftError: a prompt is empty, or a sampling value is outside its limits.
        """
        strategy = strategy or BestOfN(1)
        sampling = sampling or Sampling()
        sampling.check(self.model.config.vocab_size)
        requests = [
            self._request(index, prompt, strategy, sampling)
            for index, prompt in enumerate(_as_list(prompts))
        ]
        self._prepare(requests, strategy)
        generation = Generation(self, strategy, sampling, requests)
        return generation.run(on_token, on_status, should_stop)

    def _request(self, index, prompt, strategy, sampling) -> Request:
        """Encode a prompt and checks it against the context."""
        is_text = isinstance(prompt, str)
        ids = self.tokenizer.encode(prompt) if is_text else _as_ids(index, prompt)
        if not ids:
            raise DeftError(f"prompt {index} has no tokens; give at least one")
        vocab_size = self.model.config.vocab_size
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            raise DeftError(
                f"prompt {index} has token ids from {min(ids)} to {max(ids)}; "
                f"the vocabulary has 0 to {vocab_size - 1}"
            )
        room = self.model.config.context_length - len(ids)
        if room < 1:
            raise CapacityError(
                f"prompt {index} has {len(ids)} tokens; the model's context of "
                f"{len(ids) + room} leaves no room for an answer; shorten the prompt"
            )
        text = prompt if is_text else self._text(ids)
        limit = min(sampling.max_new_tokens, room)
        return Request(index, ids, text, limit, strategy.rows, strategy.nodes)

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def _prepare(self, requests: list[Request], strategy: Strategy) -> None:
        """Make the state fit the requests, and resets what belongs to one call."""
        needed = Capacity.for_requests(
            [len(request.prompt) for request in requests],
            max(request.limit for request in requests),
            strategy.rows,
            strategy.nodes,
        )
        if not self._fixed and not (self.capacity and self.capacity.covers(needed)):
            self.capacity, self._state = needed, None
        assert self.capacity is not None
        for request in requests:
            request.check(self.capacity)
        if self._state is None:
            self._state = self._empty_state(self.capacity)
        own = strategy.planner.init(self.capacity)
        # Donated with the state, so that no array may be there twice or be kept.
        own = jax.tree.map(lambda array: jnp.array(array, copy=True), own)
        self._state = dataclasses.replace(self._state, planner=own)

    def _empty_state(self, capacity: Capacity) -> DecodeState:
        config, dtype = self.model.config, self.model.dtype
        rows = capacity.rows
        return DecodeState(
            tree=Tree.create(capacity.nodes, capacity.pages, capacity.page_size),
            pool=self.method.create_pool(config, capacity, dtype),
            rows=Rows(
                node=jnp.full(rows, capacity.nodes, jnp.int32),
                request=jnp.full(rows, capacity.requests, jnp.int32),
                number=jnp.zeros(rows, jnp.int32),
                generated=jnp.zeros(rows, jnp.int32),
            ),
            hidden=jnp.zeros((rows, config.hidden_size), dtype),
            roots=jnp.full(capacity.requests, capacity.nodes, jnp.int32),
            branch_keys=BranchKeys.create(capacity.nodes),
            keep=jnp.zeros(capacity.nodes, bool),
            planner=(),
            log=StepLog.create(LOG_STEPS, rows),
            step=jnp.int32(0),
            kv_tokens=jnp.zeros(2, jnp.float32),
        )

    @property
    def state(self) -> DecodeState:
        """The decode state on the device."""
        assert self._state is not None
        return self._state

    @property
    def log_steps(self) -> int:
        """Most decode steps between two looks of the host."""
        return LOG_STEPS

    def reset(self) -> None:
        """Drop the state, whatever it holds; the next call makes an empty one."""
        self._state = None

    def prefill(self, chunk) -> DecodeState:
        """Feed a `Chunk` of prompts; return the new state.

        The planner's state stays outside, so that planners share a compilation.
        """
        own = self.state.planner
        state: DecodeState = run_prefill(
            self.model,
            dataclasses.replace(self.state, planner=()),
            chunk,
            method=self.method,
        )
        self._state = dataclasses.replace(state, planner=own)
        return self._state

    def decode(self, table, cut, max_steps: int, planner: Planner) -> DecodeState:
        """Run up to `max_steps` steps; return the new state with their log."""
        state: DecodeState = decode_program()(
            self.model,
            self.state,
            table,
            cut,
            jnp.int32(max_steps),
            planner=planner,
            method=self.method,
        )
        self._state = state
        return state

    def is_first(self, step: str, planner: Planner | None = None) -> bool:
        """True once per step and capacity: the next call compiles it."""
        key = (step, self.capacity, planner)
        first = key not in self._compiled
        self._compiled.add(key)
        return first


def _as_ids(index: int, prompt) -> list[int]:
    """Token ids as plain integers."""
    try:
        return [operator.index(token) for token in prompt]
    except TypeError:
        raise DeftError(
            f"prompt {index} must be text or integer token ids, got {prompt!r:.60}"
        ) from None


def _as_list(prompts) -> list:
    """A list of prompts from one prompt or several."""
    if isinstance(prompts, str):
        return [prompts]
    prompts = list(prompts)
    if not prompts:
        raise DeftError("expected at least 1 prompt, got none")
    if all(isinstance(item, str) or hasattr(item, "__len__") for item in prompts):
        return prompts
    return [prompts]
