"""The plain-text picture of a generated tree, as lines of spans with a role each.

The command line colours the spans by role; `render_tree` joins their text.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from rich.cells import cell_len

from deft_jax.results.outline import merge_chains, outline
from deft_jax.results.terminal_text import excerpt, head, one_line, wrap
from deft_jax.results.tree_node import TreeNode

Role = Literal["guide", "prompt", "label", "text", "good", "short", "answer", "notice"]

_MIN_WIDTH = 24
_MAX_ANSWER = 32
_MAX_VOTES = 5


class Span(NamedTuple):
    """A piece of a line that has one meaning."""

    text: str
    role: Role = "text"


Line = tuple[Span, ...]


class Drawable(Protocol):
    """What a picture shows of a tree, such as a `GenerationTree`."""

    @property
    def prompt(self) -> str:
        """The prompt's text."""
        ...

    @property
    def nodes(self) -> Sequence[TreeNode]:
        """All nodes, parents before their children; the first is the root."""
        ...

    @property
    def answer(self) -> str | None:
        """The answer that most branches gave."""
        ...

    @property
    def votes(self) -> Mapping[str, int]:
        """The number of branches per answer."""
        ...

    @property
    def notice(self) -> str | None:
        """What ended the request early."""
        ...

    def leaves(self) -> Sequence[TreeNode]:
        """Return the nodes without children."""
        ...

    def best(self) -> TreeNode:
        """Return the leaf to show as the best one."""
        ...

    def mean_logprob(self, node: TreeNode) -> float:
        """Return the mean log-probability over the generated path to a node."""
        ...


def render_tree(tree: Drawable, width: int, max_text: int | None) -> str:
    """Return the lines of `tree_lines` as one string."""
    return "\n".join(plain(line) for line in tree_lines(tree, width, max_text))


def plain(line: Line) -> str:
    """Return the text of a line."""
    return "".join(span.text for span in line).rstrip()


def tree_lines(
    tree: Drawable, width: int, max_text: int | None, prompt: str | None = None
) -> Iterator[Line]:
    """Yield the prompt, every branch below it, and what the strategy made of them.

    A label line names a branch by its node; its text follows below.

    Args:
        tree: what to show.
        width: cells of a line.
        max_text: cells of text per branch, `None` for all of it.
        prompt: shown in place of the tree's prompt, such as the words of the user
            inside a chat template.
    """
    width = max(width, _MIN_WIDTH)
    for line in _body(tree.prompt if prompt is None else prompt, width, max_text):
        yield (Span(line, "prompt"),)
    nodes = {node.id: node for node in tree.nodes}
    chains = merge_chains({node.id: node.parent for node in tree.nodes})
    best = tree.best().id if len(tree.leaves()) > 1 else None
    for row in outline(chains, max_guide=width // 2):
        run = [nodes[id] for id in row.ids]
        label = _label(tree, run, is_best=row.id == best)
        yield fit((Span(row.guide, "guide"), *label), width)
        text = "".join(node.text for node in run)
        for line in _body(text, width - cell_len(row.hanging), max_text):
            yield Span(row.hanging, "guide"), Span(line)
    yield from _conclusion(tree, width)


def fit(line: Line, width: int) -> Line:
    """Return the line cut to `width` cells."""
    fitted: list[Span] = []
    for span in line:
        left = width - sum(cell_len(done.text) for done in fitted)
        if left <= 0:
            break
        fitted.append(span._replace(text=head(span.text, left)))
    return tuple(fitted)


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def reason_role(reason: str | None) -> Role:
    """Return the role that shows why a branch ended."""
    return "good" if reason == "stop" else "short"


def _body(text: str, width: int, max_text: int | None) -> list[str]:
    text = one_line(text)
    return wrap(text if max_text is None else excerpt(text, max_text), width)


def _label(tree: Drawable, run: Sequence[TreeNode], is_best: bool) -> list[Span]:
    node = run[-1]
    tokens = sum(len(step.tokens) for step in run)
    spans = [Span(f"{node.id} · {count(tokens, 'token')}", "label")]
    mean = tree.mean_logprob(node)
    if math.isfinite(mean):
        spans.append(Span(f" · mean log-prob {mean:.2f}", "label"))
    if node.finish_reason is not None:
        spans += [
            Span(" · ", "label"),
            Span(node.finish_reason, reason_role(node.finish_reason)),
        ]
    if node.answer is not None:
        answer = head(one_line(node.answer), _MAX_ANSWER)
        spans += [Span(" · answer ", "label"), Span(answer, "answer")]
    return [*spans, Span(" · best", "good")] if is_best else spans


def _conclusion(tree: Drawable, width: int) -> Iterator[Line]:
    if tree.notice is not None:
        for line in wrap(one_line(f"notice: {tree.notice}"), width):
            yield (Span(line, "notice"),)
    if tree.answer is not None:
        votes, all_votes = tree.votes.get(tree.answer, 0), sum(tree.votes.values())
        share = f" ({votes} of {count(all_votes, 'vote')})" if all_votes else ""
        for line in wrap(f"answer: {one_line(tree.answer)}{share}", width):
            yield (Span(line, "answer"),)
    if tree.votes:
        for line in wrap(f"votes: {_ranking(tree)}", width):
            yield (Span(line, "label"),)


def _ranking(tree: Drawable) -> str:
    """Return the answers with the most votes, most first."""
    ranked = sorted(tree.votes.items(), key=lambda item: -item[1])
    shown = [
        f"{head(one_line(answer), _MAX_ANSWER)} {votes}"
        for answer, votes in ranked[:_MAX_VOTES]
    ]
    hidden = len(ranked) - _MAX_VOTES
    return ", ".join(shown + ([f"and {hidden} more"] if hidden > 0 else []))
