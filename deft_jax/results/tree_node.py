"""The parts of a generated tree: its nodes, and the tokens as they come."""

from dataclasses import dataclass
from typing import Literal

ROOT = 0
"""Id of the node that holds the prompt."""

FinishReason = Literal[
    "stop", "length", "capacity", "interrupted", "pruned", "not-finite"
]
"""Why a branch ended.

"stop": end of text, a stop string or a stop token; "length": token limit; "capacity":
the KV pool was full; "interrupted": the caller asked to stop; "pruned": the strategy
gave it up; "not-finite": the model's numbers became NaN or infinite somewhere in its
request.
"""


TopLogprobs = tuple[tuple[int, float], ...]
"""Most likely tokens in a place of a text with their log-probabilities, falling."""


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """One token sampled on one branch.

    Attributes:
        request: index of the prompt.
        node: id of the tree node the token was appended to.
        parent: id of that node's parent.
        token: token id.
        text: the text this token completed; empty while a code point or a possible
            stop string is still incomplete.
        logprob: log-probability of the token under the model, in nats.
        finish_reason: set on the last token of a branch.
        top_logprobs: the most likely tokens in its place with their log-probabilities
            under the model, in nats, as many as `Sampling.logprobs` asks for; empty
            for a token that a strategy chains, not as a draft, behind another of the
            same step, where they are not known yet.
    """

    request: int
    node: int
    parent: int | None
    token: int
    text: str
    logprob: float
    finish_reason: FinishReason | None = None
    top_logprobs: TopLogprobs = ()


@dataclass(frozen=True, kw_only=True)
class TreeNode:
    """A run of tokens that its descendants share.

    Attributes:
        id: number of the node within its tree; `ROOT` is the prompt.
        parent: id of the parent, `None` for the root.
        tokens: token ids; the prompt's tokens for the root.
        text: the text of these tokens, without a stop string.
        logprobs: log-probability of each token, in nats; empty for the root.
        finish_reason: why the branch ended, `None` for a node that was continued. The
            root has one only if its request failed before a token was generated.
        answer: answer that a strategy found on the path that ends here.
        score: how good a strategy finds the path that ends here; the higher the better.
            None if it gives none.
        top_logprobs: for each token the most likely tokens in its place with their
            log-probabilities, in nats, as many as `Sampling.logprobs` asks for; empty
            for the root, and if it asks for none.
    """

    id: int
    parent: int | None
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    answer: str | None = None
    score: float | None = None
    top_logprobs: tuple[TopLogprobs, ...] = ()
