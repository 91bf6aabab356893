"""The host's record of a tree: replays the log of the decode loop, and writes text."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from deft_jax.engine.stop_strings import StopMatcher
from deft_jax.results.tree_node import ROOT, FinishReason, TokenEvent, TreeNode


class Tokenizer(Protocol):
    """What the engine asks of a tokenizer, such as one that `deft_jax.models` loads.

    A tokenizer may also have `special_tokens`, the id of each token without text by its
    name; then stop strings may name these tokens.
    """

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def stream(self, context: Sequence[int]) -> Any: ...


@dataclasses.dataclass
class Branch:
    """A node that may still grow, with the state of its text."""

    id: int
    parent: int | None
    text_stream: Any
    stops: StopMatcher
    draft: bool = False
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None

    def grow(self, token: int, logprob: float) -> str:
        """Add a token; return the text that is now certain."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
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


class Record:
    """One request's tree as it grows.

    Attributes:
        request: index of the prompt in the call.
        branches: by result node id; the first is the prompt.
    """

    def __init__(
        self,
        request: int,
        prompt: list[int],
        prompt_text: str,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
    ):
        self.request = request
        special = getattr(tokenizer, "special_tokens", None)
        root = Branch(ROOT, None, tokenizer.stream(prompt), StopMatcher(stop, special))
        root.tokens, root.text = list(prompt), prompt_text
        self.branches = {ROOT: root}
        self._next_id = ROOT + 1

    def branch(self, parent: int, draft: bool = False) -> int:
        """Add a child that continues the parent's text; return its id."""
        source = self.branches[parent]
        child = Branch(
            self._next_id,
            parent,
            source.text_stream.copy(),
            source.stops.copy(),
            draft=draft,
        )
        self.branches[child.id] = child
        self._next_id += 1
        return child.id

    def has_ended(self, node: int) -> bool:
        """True if the branch has a finish reason, so that it takes no more tokens."""
        return self.branches[node].finish_reason is not None

    def grow(
        self, node: int, token: int, logprob: float, reason: FinishReason | None
    ) -> TokenEvent | None:
        """Add a token to a node; None if the node is a draft or had ended before."""
        branch = self.branches[node]
        if self.has_ended(node):
            return None
        text = branch.grow(token, logprob)
        if reason is not None:
            text += branch.finish(reason)
        return None if branch.draft else self._event(branch, token, logprob, text)

    def accept(self, tip: int) -> list[TokenEvent]:
        """Move the tokens of a draft path into its trunk and forgets the trunk's
        other drafts; returns the events of the accepted tokens."""
        path: list[Branch] = []
        target = self.branches[tip]
        while target.draft:
            path.insert(0, target)
            target = self.branches[target.parent or ROOT]
        events = []
        for draft in path:
            for token, logprob in zip(draft.tokens, draft.logprobs, strict=True):
                event = self.grow(target.id, token, logprob, None)
                events += [event] if event else []
        self._forget_drafts(target.id)
        return events

    def _forget_drafts(self, trunk: int) -> None:
        gone = {trunk}
        for branch in list(self.branches.values()):
            if branch.draft and branch.parent in gone:
                gone.add(branch.id)
                del self.branches[branch.id]

    def _event(self, branch: Branch, token: int, logprob: float, text: str):
        return TokenEvent(
            request=self.request,
            node=branch.id,
            parent=branch.parent,
            token=token,
            text=text,
            logprob=logprob,
            finish_reason=branch.finish_reason,
        )

    def close(self, reason: FinishReason) -> None:
        """Forgets all drafts and ends every leaf that still grows, but no prompt."""
        kept = [branch for branch in self.branches.values() if not branch.draft]
        self.branches = {branch.id: branch for branch in kept}
        inner = {branch.parent for branch in kept} | {ROOT}
        for branch in kept:
            if branch.id not in inner:
                branch.finish(reason)

    def nodes(self) -> tuple[TreeNode, ...]:
        """The record as result nodes."""
        return tuple(
            TreeNode(
                id=branch.id,
                parent=branch.parent,
                tokens=tuple(branch.tokens),
                text=branch.text,
                logprobs=tuple(branch.logprobs),
                finish_reason=branch.finish_reason,
            )
            for branch in self.branches.values()
        )
