"""A tree of ids as rows with box-drawing guides, top to bottom."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from deft_jax.results.terminal_text import ELLIPSIS
from deft_jax.results.tree_node import ROOT

_STEP = 3


@dataclass(frozen=True)
class Row:
    """One entry of an outline.

    Attributes:
        ids: the nodes of the entry, a chain of only children, top first.
        guide: lines in front of the entry's first line.
        hanging: lines in front of its other lines; as wide as `guide` and one step
            more.
    """

    ids: tuple[int, ...]
    guide: str
    hanging: str

    @property
    def id(self) -> int:
        """The last node of the chain, which names the entry."""
        return self.ids[-1]


def merge_chains(parents: Mapping[int, int | None]) -> dict[tuple[int, ...], int]:
    """Join every only child below the root with its parent.

    A search that continues one node for a thousand steps is thus one entry.

        In:   1 -> 0, 2 -> 1, 3 -> 2, 4 -> 2    (0 is the root)
        Out:  (1, 2) -> 0, (3,) -> 2, (4,) -> 2

    Args:
        parents: parent of each node, parents before children; `None` for the root.

    Returns:
        For each chain, the node above it: the last one of another chain or the root.
    """
    child_count = Counter(parents.values())
    chain_of: dict[int, list[int]] = {}
    above: list[tuple[list[int], int]] = []
    for node, parent in parents.items():
        if parent is None:
            continue
        if parent in chain_of and child_count[parent] == 1:
            chain_of[node] = chain_of[parent]
            chain_of[node].append(node)
        else:
            chain_of[node] = [node]
            above.append((chain_of[node], parent))
    return {tuple(chain): parent for chain, parent in above}


def outline(chains: Mapping[tuple[int, ...], int], max_guide: int) -> list[Row]:
    """Return the rows of the tree below the root, depth first.

    Args:
        chains: what `merge_chains` returns, or a part of it closed under parents.
        max_guide: cells after which deep guides are cut on their left.
    """
    children: dict[int, list[tuple[int, ...]]] = {}
    for chain, parent in chains.items():
        children.setdefault(parent, []).append(chain)
    last_of = {parent: below[-1] for parent, below in children.items()}
    rows: list[Row] = []
    # The stack holds the next row on top, so siblings are pushed last first.
    stack = [(chain, "") for chain in reversed(children.get(ROOT, []))]
    while stack:
        chain, prefix = stack.pop()
        is_last = last_of[chains[chain]] == chain
        below = prefix + ("   " if is_last else "│  ")
        stem = "│  " if chain[-1] in children else "   "
        rows.append(
            Row(
                ids=chain,
                guide=_shorten(prefix + ("└─ " if is_last else "├─ "), max_guide),
                hanging=_shorten(below, max_guide) + stem,
            )
        )
        stack += [(child, below) for child in reversed(children.get(chain[-1], []))]
    return rows


def _shorten(guide: str, width: int) -> str:
    """Return a guide of at most so many cells, whose left end is left out.

    "│  │  │  └─ " and 9 cells  ->  "…  │  └─ "
    """
    if len(guide) <= width:
        return guide
    return ELLIPSIS + guide[-(width - width % _STEP) + 1 :]
