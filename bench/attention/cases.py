"""The trees that the attention benchmark runs: those of the peers, and DeFT's own."""

import dataclasses
import itertools
import json
from pathlib import Path

from deft_jax.errors import DeftError

PEERS = Path(__file__).parents[1] / "workloads" / "attention_peers.json"
"""Times of other libraries' tree attention on one H100, how they were taken, and the
trees. Children are spread evenly over the level above; one query per leaf."""

FEW_SHOT_PROMPT = 4000
FEW_SHOT_BRANCHES = (20, 30, 50)
FEW_SHOT_STEPS = {"first": 1, "last": 399}
SPECULATIVE_PROMPT = 1016
SPECULATIVE_DRAFTS = (32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Case:
    """A tree with one query per leaf, and the heads of the attention over it.

    Attributes:
        name: name of the tree, unique among the cases.
        nodes: nodes of each level, one in the first.
        tokens_per_node: tokens of each node of a level.
        num_q_heads: `H`.
        num_kv_heads: `K`.
        head_dim: `D`.
        drafts: true if the nodes below the root are drafts, whose tokens are stored in
            the root's pages.
        peer: the fastest other method, None if none was measured.
        peer_cold_us: its time with a cold L2 cache, one graph launch included.
    """

    name: str
    nodes: tuple[int, ...]
    tokens_per_node: tuple[int, ...]
    num_q_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    drafts: bool = False
    peer: str | None = None
    peer_cold_us: float | None = None

    @property
    def leaves(self) -> int:
        """`Q`, one query each."""
        return self.nodes[-1]

    @property
    def tokens(self) -> int:
        """Tokens of the tree, shared ones counted once."""
        levels = zip(self.nodes, self.tokens_per_node, strict=True)
        return sum(nodes * tokens for nodes, tokens in levels)

    @property
    def flops(self) -> int:
        """Operations of the two products, over all tokens that each query sees."""
        seen = self.leaves * sum(self.tokens_per_node)
        return 4 * self.head_dim * self.num_q_heads * seen

    def kv_bytes(self, itemsize: int) -> int:
        """Return the bytes of the keys and values of the tree's tokens."""
        return self.tokens * self.num_kv_heads * self.head_dim * 2 * itemsize


def all_cases() -> list[Case]:
    """Return the peers' trees in the order of their file, then DeFT's workloads."""
    return [*_peers(), *_few_shot(), *_speculative()]


def select_cases(choice: str) -> list[Case]:
    """Return the cases with these numbers.

    Args:
        choice: "all", or numbers with commas between them, as in "0,3,5".

    Raises:
        DeftError: `choice` is neither, or a number is no case's.
    """
    cases = all_cases()
    if choice == "all":
        return cases
    try:
        numbers = [int(number) for number in choice.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 <= number < len(cases) for number in numbers):
        raise DeftError(
            f'cases must be "all" or numbers below {len(cases)} with commas between '
            f"them, got {choice!r}"
        )
    return [cases[number] for number in numbers]


def _peers() -> list[Case]:
    return [
        Case(
            name=f"peers_{number:02}",
            nodes=tuple(facts["nodes"]),
            tokens_per_node=tuple(facts["tokens_per_node"]),
            num_q_heads=facts["num_q_heads"],
            num_kv_heads=facts["num_kv_heads"],
            head_dim=facts["head_dim"],
            peer=facts["best_peer"],
            peer_cold_us=facts["best_peer_cold_us"],
        )
        for number, facts in enumerate(json.loads(PEERS.read_text())["cases"])
    ]


def _few_shot() -> list[Case]:
    """Return a prompt whose branches grow by a token per step (DeFT, section 4)."""
    return [
        Case(f"few_shot_{width}_{step}", (1, width), (FEW_SHOT_PROMPT, tokens))
        for width, (step, tokens) in itertools.product(
            FEW_SHOT_BRANCHES, FEW_SHOT_STEPS.items()
        )
    ]


def _speculative() -> list[Case]:
    """Return a prompt and drafted tokens, each a leaf below it, as DeFT ran them."""
    return [
        Case(f"speculative_{width}", (1, width), (SPECULATIVE_PROMPT, 1), drafts=True)
        for width in SPECULATIVE_DRAFTS
    ]
