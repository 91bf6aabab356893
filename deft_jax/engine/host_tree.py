"""The tree of one request on the host: its tokens, its text, and how branches end."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

from deft_jax.engine.stop_strings import StopMatcher
from deft_jax.results.tree_node import (
    ROOT,
    FinishReason,
    TokenEvent,
    TopLogprobs,
    TreeNode,
)


class Tokenizer(Protocol):
    """What the engine asks of a tokenizer, such as one that `deft_jax.models` loads.

    A tokenizer may also have `special_tokens`, the id of each token without text by its
    name; then stop strings may name these tokens.
    """

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of token ids."""
        ...

    def stream(self, context: Sequence[int]) -> Any:
        """Return a stream that turns the tokens behind a context into text.

        It has `push(token)` and `flush()`, which return the text that became certain,
        and `copy()`.
        """
        ...


@dataclasses.dataclass
class Branch:
    """A node of the result that may still grow, with the state of its text.

    Attributes:
        id: number of the node within its tree.
        parent: id of the parent; None for the prompt.
        text_stream: turns tokens into text, from the parent's last token on.
        stops: watches the text for stop strings.
        draft: true for tokens that may still be rejected.
        generated: tokens generated on the path down to the branch's last token.
        tokens: token ids.
        logprobs: log-probability of each token.
        text: the text that is certain.
        finish_reason: why the branch ended; None while it grows.
        tops: most likely tokens in the place of each token.
        next_tops: those behind the last token; empty until they are known.
        score: what the strategy has said of it while the request waited.
    """

    id: int
    parent: int | None
    text_stream: Any
    stops: StopMatcher
    draft: bool = False
    generated: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    tops: list[TopLogprobs] = dataclasses.field(default_factory=list)
    next_tops: TopLogprobs = ()
    score: float | None = None

    def grow(self, token: int, logprob: float) -> str:
        """Add a token; return the text that is now certain."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.tops.append(self.next_tops)
        self.next_tops = ()
        self.generated += 1
        text = self.stops.push(self.text_stream.push(token), token)
        if self.stops.stop_at is not None:
            self.finish_reason = "stop"
        self.text += text
        return text

    def finish(self, reason: FinishReason) -> str:
        """End the branch; return the text that was held back."""
        if self.finish_reason is not None:
            return ""
        text = self.stops.push(self.text_stream.flush())
        if self.stops.stop_at is None:
            text += self.stops.flush()
        self.finish_reason = reason
        self.text += text
        return text


class HostTree:
    """One request's tree as it grows, by the node ids of the result.

    Attributes:
        request: index of the prompt in the call.
        branches: the nodes by id, in the order of their making; the first one is the
            prompt.
    """

    def __init__(
        self,
        request: int,
        prompt: list[int],
        prompt_text: str,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
        limit: float = math.inf,
        num_top: int = 0,
    ):
        """Start with the prompt alone.

        Args:
            request: index of the prompt in the call.
            prompt: token ids.
            prompt_text: the text of the prompt.
            tokenizer: turns tokens into text.
            stop: strings that end a branch.
            limit: tokens that a path may have, whatever the strategy says.
            num_top: most likely tokens that each token of the result comes with.
        """
        self.request = request
        special = getattr(tokenizer, "special_tokens", None)
        root = Branch(ROOT, None, tokenizer.stream(prompt), StopMatcher(stop, special))
        root.tokens, root.text = list(prompt), prompt_text
        self.branches = {ROOT: root}
        self._next_id = ROOT + 1
        self._limit = limit
        self._num_top = num_top

    def branch(self, parent: int, draft: bool = False) -> int:
        """Add a child that continues the parent's text; return its id."""
        source = self.branches[parent]
        child = Branch(
            self._next_id,
            parent,
            source.text_stream.copy(),
            source.stops.copy(),
            draft=draft,
            generated=source.generated,
            next_tops=source.next_tops,
        )
        self.branches[child.id] = child
        self._next_id += 1
        return child.id

    def has_ended(self, node: int) -> bool:
        """Say whether a branch has a finish reason, so that it takes no more tokens."""
        return self.branches[node].finish_reason is not None

    def note_tops(self, node: int, tokens: Any, logprobs: Any) -> None:
        """Note what is most likely behind the last token of a node.

        Args:
            node: id of the node; one that is not there is ignored.
            tokens: [K] int32, token ids by falling log-probability.
            logprobs: [K] float32, their natural log-probabilities.
        """
        if self._num_top and node in self.branches:
            tops = (x[: self._num_top].tolist() for x in (tokens, logprobs))
            self.branches[node].next_tops = tuple(zip(*tops, strict=True))

    def grow(
        self, node: int, token: int, logprob: float, reason: FinishReason | None
    ) -> TokenEvent | None:
        """Add a token to a node; return its event.

        Args:
            node: id of the node.
            token: token id.
            logprob: log-probability of the token.
            reason: why the branch ends with the token; None if it goes on.

        Returns:
            What listeners are told; None if the node is a draft or had ended before.
        """
        branch = self.branches[node]
        if branch.generated >= self._limit and not branch.draft:
            # The strategy should have ended it; what it draws too much is left out.
            branch.finish("length")
        if self.has_ended(node):
            return None
        text = branch.grow(token, logprob)
        if reason is not None:
            text += branch.finish(reason)
        if branch.draft:
            return None
        return TokenEvent(
            request=self.request,
            node=branch.id,
            parent=branch.parent,
            token=token,
            text=text,
            logprob=logprob,
            finish_reason=branch.finish_reason,
            top_logprobs=branch.tops[-1],
        )

    def accept(self, tip: int) -> list[TokenEvent]:
        """Move the tokens of a draft path into its trunk, and forget its other drafts.

        What hangs on a draft that is forgotten is forgotten too. Children of the tip
        that are no drafts become the trunk's.

        Args:
            tip: id of the last accepted draft, or of the trunk to accept none.

        Returns:
            The events of the accepted tokens.
        """
        path: list[Branch] = []
        trunk = self.branches[tip]
        while trunk.draft:
            path.insert(0, trunk)
            trunk = self.branches[trunk.parent or ROOT]
        events = []
        for draft in path:
            drafted = zip(draft.tokens, draft.logprobs, draft.tops, strict=True)
            for token, logprob, tops in drafted:
                trunk.next_tops = tops
                event = self.grow(trunk.id, token, logprob, None)
                events += [event] if event else []
        if path:
            trunk.next_tops = path[-1].next_tops
        gone: set[int | None] = set()
        for branch in list(self.branches.values()):
            if path and branch.parent == tip and not branch.draft:
                branch.parent = trunk.id
            elif branch.parent in gone or (branch.draft and branch.parent == trunk.id):
                gone.add(branch.id)
                del self.branches[branch.id]
        return events

    def close(self, reason: FinishReason) -> None:
        """Forget all drafts and end every leaf that still grows, but no prompt."""
        kept = [branch for branch in self.branches.values() if not branch.draft]
        self.branches = {branch.id: branch for branch in kept}
        inner = {branch.parent for branch in kept} | {ROOT}
        for branch in kept:
            if branch.id not in inner:
                branch.finish(reason)

    def fail(self, reason: FinishReason) -> None:
        """Close the tree; a prompt that nothing was generated for takes the reason."""
        self.close(reason)
        if len(self.branches) == 1:
            self.branches[ROOT].finish_reason = reason

    def nodes(self) -> tuple[TreeNode, ...]:
        """Return the nodes of the result, drafts left out."""
        return tuple(
            TreeNode(
                id=branch.id,
                parent=branch.parent,
                tokens=tuple(branch.tokens),
                text=branch.text,
                logprobs=tuple(branch.logprobs),
                finish_reason=branch.finish_reason,
                top_logprobs=tuple(branch.tops) if self._num_top else (),
                score=branch.score,
            )
            for branch in self.branches.values()
            if not branch.draft
        )
