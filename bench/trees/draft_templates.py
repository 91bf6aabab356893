"""Speculative decoding to replay: a draft tree, and how much of it each step keeps."""

import dataclasses
import random
from collections.abc import Iterable
from functools import cached_property
from typing import Literal, Self, get_args

import numpy as np

from deft_jax.errors import DeftError
from deft_jax.tree.state import NO_NODE

from .templates import load_workload

DRAFT_COUNTS = (32, 64, 128, 256)
"""Tokens per step of the recorded draft trees."""

PROMPT_TOKENS = 1016
"""Of the recorded prompt."""

DraftTree = Literal["real", "star"]
DRAFT_TREES: tuple[DraftTree, ...] = get_args(DraftTree)


@dataclasses.dataclass(frozen=True)
class DraftTemplate:
    """Speculative decoding with a draft tree and accept lengths that are given.

    Each step verifies `T` tokens: row 0 is the last token of the trunk, which the model
    has chosen but not read, the other rows are drafts below it. An accept length of `a`
    keeps the trunk's token and `a - 1` drafts on the first path that is that deep.

    Attributes:
        name: name of the tree in reports.
        prompt_tokens: tokens of the prompt.
        paths: [T - 1], the draft of each row but the first as the ranks of the children
            on the way down to it; a path comes after the one it prolongs.
        accept_lengths: [S], tokens kept in each step.
    """

    name: str
    prompt_tokens: int
    paths: tuple[tuple[int, ...], ...]
    accept_lengths: tuple[int, ...]

    @classmethod
    def create(
        cls,
        name: str,
        prompt_tokens: int,
        paths: Iterable[Iterable[int]],
        accept_lengths: Iterable[int],
    ) -> Self:
        """Check the draft tree and the accept lengths.

        Raises:
            DeftError: a path is there twice or does not come after the one it prolongs,
                or an accept length is more than the tree can give.
        """
        all_paths = tuple(map(tuple, paths))
        template = cls(name, prompt_tokens, all_paths, tuple(accept_lengths))
        known: set[tuple[int, ...]] = {()}
        for path in template.paths:
            if path in known or path[:-1] not in known:
                raise DeftError(
                    f"{name}: path {path} must be there once, after the path above it"
                )
            known.add(path)
        most, lengths = template.depth + 1, template.accept_lengths
        if prompt_tokens < 1 or not lengths or not 1 <= min(lengths):
            raise DeftError(f"{name}: the prompt and every step need at least 1 token")
        if max(lengths) > most:
            raise DeftError(
                f"{name}: a draft tree {most - 1} deep keeps at most {most} tokens, "
                f"got an accept length of {max(lengths)}"
            )
        return template

    @property
    def num_tokens(self) -> int:
        """`T`, query tokens of a step."""
        return 1 + len(self.paths)

    @property
    def depths(self) -> tuple[int, ...]:
        """[T], drafts on the way down to each row's token; 0 for row 0."""
        return (0, *map(len, self.paths))

    @property
    def depth(self) -> int:
        """Drafts on the longest path."""
        return max(self.depths)

    @property
    def parents(self) -> tuple[int, ...]:
        """[T], row that each row's token follows; NO_NODE for row 0."""
        row = {(): 0} | {path: index for index, path in enumerate(self.paths, 1)}
        return (NO_NODE, *(row[path[:-1]] for path in self.paths))

    @property
    def ranks(self) -> tuple[int, ...]:
        """[T], rank of each row's token among its siblings; 0 for row 0."""
        return (0, *(path[-1] for path in self.paths))

    @property
    def tips(self) -> tuple[int, ...]:
        """[S], row of the last token that each step keeps."""
        return tuple(self.depths.index(kept - 1) for kept in self.accept_lengths)

    @property
    def steps(self) -> int:
        """`S`, decode steps."""
        return len(self.accept_lengths)

    @cached_property
    def kept(self) -> np.ndarray:
        """[S + 1] int, tokens kept before each step; the last entry is the total."""
        return np.cumsum([0, *self.accept_lengths])

    @property
    def live_width(self) -> np.ndarray:
        """[S] int, query tokens of each step."""
        return np.full(self.steps, self.num_tokens)

    @property
    def live_tokens(self) -> np.ndarray:
        """[S] int, cached tokens in each step, the drafts counted."""
        return self.prompt_tokens + self.kept[:-1] + self.num_tokens

    @property
    def path_tokens(self) -> np.ndarray:
        """[S] int, summed lengths of the paths down to all query tokens of a step."""
        above = self.prompt_tokens + self.kept[:-1] + 1
        return self.num_tokens * above + sum(self.depths)


def speculative(
    drafts: int,
    tree: DraftTree = "real",
    max_tokens: int = 6000,
    prompt_tokens: int = PROMPT_TOKENS,
) -> DraftTemplate:
    """Return the paper's speculative decoding: 1507 steps that keep 4984 tokens.

    The accept lengths of the file are prolonged with random ones, as DeFT's release
    does, until prompt and kept tokens are `max_tokens`; the last is cut to fit.

    Args:
        drafts: `T`, tokens verified per step: 32, 64, 128 or 256.
        tree: "real" for the draft tree of the file. "star" is DeFT's measured shape: it
            replays `T` one-token leaves below the root, of which no two could be kept
            together. Ours is a chain just long enough for the largest accept length,
            and all other drafts are leaves below the trunk's token.
        max_tokens: most tokens of the finished sequence, the prompt counted.
        prompt_tokens: length of the prompt.

    Raises:
        DeftError: there is no such tree, or no room below `max_tokens`.
    """
    data = load_workload("speculative")
    if str(drafts) not in data["trees"] or tree not in DRAFT_TREES:
        raise DeftError(
            f"expected a real or star tree of {', '.join(data['trees'])} tokens, got "
            f"{tree!r} of {drafts}"
        )
    budget = max_tokens - prompt_tokens
    lengths = _fill(data["accept_lengths"], budget)
    paths = data["trees"][str(drafts)]["paths"]
    if tree == "star":
        chain = max(data["accept_lengths"]) - 1
        paths = [[0] * depth for depth in range(1, chain + 1)]
        paths += [[rank] for rank in range(1, drafts - chain)]
    name = f"speculative_{tree}_{drafts}"
    return DraftTemplate.create(name, prompt_tokens, paths, lengths)


def _fill(lengths: list[int], budget: int) -> list[int]:
    """Return accept lengths that sum up to a budget, first those given."""
    draw, filled, left = random.Random(0), [], budget
    given = iter(lengths)
    while left > 0:
        length = next(given, None) or draw.randint(min(lengths), max(lengths))
        filled.append(min(length, left))
        left -= filled[-1]
    return filled
