"""The workloads of the decode benchmark: a template, and how the engine replays it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from deft_jax.accounting.methods import (
    AttentionSizes,
    IOAccount,
    KernelSizes,
    Method,
    count_io,
    total,
)
from deft_jax.accounting.tree_steps import TreeSteps, search_stretches
from deft_jax.capacity import Capacity

from ..report.data import describe
from . import draft_replay, tree_replay
from .draft_replay import DraftReplay
from .draft_templates import PROMPT_TOKENS, DraftTemplate, DraftTree, speculative
from .templates import TreeTemplate, few_shot, reasoning
from .tree_replay import TreeReplay


@dataclasses.dataclass(frozen=True)
class Workload:
    """One tree to decode.

    Attributes:
        kind: "few-shot", "reasoning", "speculative" or "trees".
        parameters: that set it apart from others of its kind.
        template: the tree.
        peers: templates that share a capacity, and so a compilation, with it.
    """

    kind: str
    parameters: dict[str, Any]
    template: TreeTemplate | DraftTemplate
    peers: tuple[TreeTemplate, ...] = ()

    @property
    def name(self) -> str:
        """For progress lines."""
        return f"{self.kind}: {describe(self.parameters)}"

    @property
    def strategy(self) -> TreeReplay | DraftReplay:
        """What the engine runs."""
        if isinstance(self.template, DraftTemplate):
            return DraftReplay(self.template)
        return TreeReplay(self.template)

    def capacity(self, page_size: int) -> Capacity:
        """Return what an engine needs for this tree and its peers."""
        if isinstance(self.template, DraftTemplate):
            return draft_replay.capacity(self.template, page_size)
        trees = self.peers or (self.template,)
        return tree_replay.common_capacity(trees, page_size)

    @property
    def longest_path(self) -> int:
        """Most tokens from the root to a query token, over all peers."""
        if isinstance(self.template, DraftTemplate):
            kept = int(self.template.kept[-1]) + self.template.depth
            return self.template.prompt_tokens + kept
        trees = self.peers or (self.template,)
        return max(tree.prompt_tokens + tree.steps for tree in trees)

    @property
    def output_tokens(self) -> int:
        """Tokens generated on all branches, pruned ones too; of drafts, those kept."""
        if isinstance(self.template, DraftTemplate):
            return int(self.template.kept[-1])
        return sum(self.template.tokens[1:])

    def count_io(
        self, method: Method, sizes: AttentionSizes, kernel: KernelSizes
    ) -> IOAccount:
        """Count the bytes that a method's attention moves in all steps and layers."""
        return total(count_io(method, steps, sizes, kernel) for steps in self._steps)

    @functools.cached_property
    def _steps(self) -> list[TreeSteps]:
        template = self.template
        if isinstance(template, TreeTemplate):
            return list(search_stretches(template.parents, template.tokens))
        parents = np.array([-1, 0, *(1 + np.array(template.parents[1:], int))])
        tokens = np.ones((template.steps, len(parents)), int)
        tokens[:, 0] = template.prompt_tokens + template.kept[:-1]
        queries = np.arange(len(parents)) > 0
        return [TreeSteps.create(parents, tokens, queries)]


def few_shot_workloads(
    prompts: Sequence[int], widths: Sequence[int], steps: int
) -> list[Workload]:
    """Return a prompt that branches once, for every length and width."""
    return [
        Workload(
            "few-shot",
            {"prompt_tokens": prompt, "width": width, "steps": steps},
            few_shot(prompt, width, steps),
        )
        for prompt in prompts
        for width in widths
    ]


def reasoning_workloads(
    tasks: Sequence[str], trees: Sequence[int], shorten: int = 1
) -> list[Workload]:
    """Return recorded searches; those of a task share a capacity.

    Args:
        tasks: names of `REASONING_TASKS`.
        trees: numbers from 0 to 9.
        shorten: divisor of all lengths.
    """
    workloads = []
    for task in tasks:
        chosen = [reasoning(task)[tree] for tree in trees]
        if shorten > 1:
            chosen = [template.shortened(shorten) for template in chosen]
        workloads += [
            Workload(
                "reasoning",
                {"task": task, "tree": tree, "prompt_tokens": template.prompt_tokens},
                template,
                tuple(chosen),
            )
            for tree, template in zip(trees, chosen, strict=True)
        ]
    return workloads


def speculative_workloads(
    drafts: Sequence[int],
    trees: Sequence[DraftTree],
    max_tokens: int,
    prompt_tokens: int = PROMPT_TOKENS,
) -> list[Workload]:
    """Draft trees that are verified and partly kept."""
    workloads = []
    for count in drafts:
        for tree in trees:
            template = speculative(count, tree, max_tokens, prompt_tokens)
            parameters = {
                "drafts": count,
                "tree": tree,
                "prompt_tokens": prompt_tokens,
                "tokens": max_tokens,
            }
            workloads.append(Workload("speculative", parameters, template))
    return workloads


def tree_workloads(templates: Sequence[TreeTemplate]) -> list[Workload]:
    """Return workloads of any trees, each with its name."""
    return [Workload("trees", {"name": tree.name}, tree) for tree in templates]
