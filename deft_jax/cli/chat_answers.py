"""Answers of the model in a chat, whose conversation stays in the engine's cache."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import deft_jax
from deft_jax.cli.chat_arguments import DEFAULT_CONTEXT
from deft_jax.cli.chat_request import ChatRequest
from deft_jax.cli.conversation import Message
from deft_jax.cli.opening import limit_context, open_chosen
from deft_jax.cli.sampling_options import sampling_of
from deft_jax.errors import CapacityError

_TURN_TOKENS = 32
"""Tokens of a short turn, which takes two nodes of the tree: question and answer."""

_MOST_NODES = 512
"""Nodes for the turns of a conversation, however long it may become."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the model answered.

    Attributes:
        texts: one per branch; none if it was stopped before it said anything.
        notes: one line each about how it came about.
    """

    texts: list[str]
    notes: list[str]


class Answerer:
    """Asks the engine; each request begins with what the last one has left there.

    The chat template makes the token ids of the whole conversation anew each time, and
    the prefix cache finds how many of them have KV.

    Attributes:
        context: most tokens of the conversation, the next answer counted.
        max_forks: most answers to one question.
        sampling: how tokens of the first answer are chosen; others have other seeds.
        stopped_by: number of the signal that stopped the last answer, None without one.
    """

    def __init__(
        self,
        engine: "deft_jax.Engine",
        sampling: "deft_jax.Sampling",
        template_args: dict[str, Any],
        max_forks: int,
    ):
        """Set it up.

        Args:
            engine: decodes; its model's context is that of the conversation.
            sampling: how tokens are chosen.
            template_args: variables of the chat template.
            max_forks: most answers to one question.
        """
        self.context: int = engine.model.config.context_length
        self.sampling, self.max_forks = sampling, max_forks
        self.stopped_by: int | None = None
        self._engine, self._template_args = engine, template_args
        self._num_asked = 0

    def ask(
        self,
        messages: Sequence[Message],
        n: int = 1,
        write: Callable[[str], object] = lambda _: None,
        note: Callable[[str], object] = lambda _: None,
    ) -> Reply:
        """Return what the model answers; a signal stops it and keeps what there is.

        Args:
            messages: the conversation, a question last.
            n: answers to it.
            write: called with the text of one answer, as it comes; from another thread
                and from this one.
            note: called with a line about what takes long.

        Raises:
            CapacityError: the conversation is too long, or n too large.
            DeftError: the chat template refuses the messages.
        """
        if n > self.max_forks:
            raise CapacityError(
                f"/fork: there is room for {self.max_forks} answers, got {n}; start the"
                f" chat with --max-forks {n} for more"
            )
        request = ChatRequest(write, note)
        prompt = self._encode(messages)
        tree = request.run(self._engine, prompt, n, self._next_sampling())
        self.stopped_by = request.stopped_by
        if tree is None:
            texts, notes = [request.text], []
        else:
            texts = [tree.path_text(leaf) for leaf in tree.leaves()]
            notes = [_counts(tree), *self._reasons(tree)]
        if self.stopped_by is None:
            return Reply(texts, notes)
        if not any(texts):
            return Reply([], ["stopped before anything was said"])
        return Reply(texts, [*notes, "stopped; what there is of the answer is kept"])

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation that leaves room for an answer."""
        tokenizer: Any = self._engine.tokenizer
        ids = tokenizer.encode_chat(messages, template_args=self._template_args)
        if len(ids) >= self.context:
            raise CapacityError(
                f"the conversation would have {len(ids)} tokens, which leaves no room"
                f" in a context of {self.context}; /trim drops its oldest turn, /back"
                " its last one, /system begins anew"
            )
        return ids

    def _next_sampling(self) -> "deft_jax.Sampling":
        """Return the sampling with a seed of its own, so that forks differ."""
        number, self._num_asked = self._num_asked, self._num_asked + 1
        seed = (self.sampling.seed + number) % 2**32
        return dataclasses.replace(self.sampling, seed=seed)

    def _reasons(self, tree: "deft_jax.GenerationTree") -> list[str]:
        """Return why answers ended before the model ended them."""
        reasons = {leaf.finish_reason for leaf in tree.leaves()}
        notes = [] if tree.notice is None else [tree.notice]
        if "length" in reasons:
            most = self.sampling.max_new_tokens
            full = len(tree.nodes[0].tokens) + most > self.context
            notes.append(
                f"the context of {self.context} tokens is full; /trim drops the oldest"
                " turn"
                if full
                else f"cut after {most} tokens; --max-new-tokens gives more"
            )
        return notes


def open_answerer(options: argparse.Namespace, examples: Sequence[Message]) -> Answerer:
    """Load the model with room for the conversation that the options ask for.

    Args:
        options: those of `deft-jax chat`.
        examples: messages like the first ones, to compile for.

    Raises:
        CapacityError: the device has too little memory.
        DeftError: the model cannot be found, read or used.
    """
    sampling, template_args = sampling_of(options), dict(options.template_arg)
    opened = open_chosen(options)
    context = options.max_context or min(DEFAULT_CONTEXT, opened.config.context_length)
    opened = limit_context(opened, context)
    engine = deft_jax.Engine(
        opened.outline(),
        opened.tokenizer,
        capacity=_capacity(options, context),
        implementation=options.implementation,
    )
    prompt = opened.tokenizer.encode_chat(examples, template_args=template_args)
    # Programs are compiled, or read from the cache, while weights are loaded.
    engine.compile_ahead([prompt], deft_jax.BestOfN(1), sampling)
    engine.model = opened.load(None)
    return Answerer(engine, sampling, template_args, options.max_forks)


def _capacity(options: argparse.Namespace, context: int) -> "deft_jax.Capacity":
    """Return room for one conversation with its forks.

    Every turn is a node or two of its own, whose last page is not full.
    """
    from deft_jax.capacity import DEFAULT_PAGE_SIZE, bucket

    needed = deft_jax.Capacity.for_requests(
        [context],
        min(options.max_new_tokens, context),
        options.max_forks,
        options.max_forks + 1,
        options.page_size or DEFAULT_PAGE_SIZE,
    )
    turns = min(2 * context // _TURN_TOKENS, _MOST_NODES)
    return dataclasses.replace(
        needed,
        nodes=bucket(needed.nodes + turns),
        pages=bucket(needed.pages + needed.pages_for(context)),
    )


def _counts(tree: "deft_jax.GenerationTree") -> str:
    """Return what was read and written, and how fast."""
    stats = tree.stats
    return (
        f"{stats.prompt_tokens_total} tokens, {stats.prompt_tokens_cached} cached;"
        f" {stats.generated_tokens} generated, {stats.tokens_per_s:.1f} tokens/s"
    )
