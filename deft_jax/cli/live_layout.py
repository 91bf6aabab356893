"""How the live view lays out its header and its trees on a screen of any size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from deft_jax.cli.growing_tree import Branch, GrowingTree
from deft_jax.cli.view import counters
from deft_jax.results.counters import Status
from deft_jax.results.outline import Row
from deft_jax.results.render import Line, Span, count, fit, reason_role
from deft_jax.results.terminal_text import head, one_line, tail, wrap

_HEADER_LINES = 2
_LINES_PER_TREE = 3
_BAR_CELLS = 24
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


@dataclass
class Activity:
    """What the command is doing, for the header.

    Attributes:
        title: model and strategy.
        started_at: when the command began, in seconds of a monotonic clock.
        since: when the present phase began.
        tensors: loaded ones and all.
        status: the last one of the engine, `None` while the model is loaded.
        stopping: what is said of the end, once a signal has asked for it.
    """

    title: str
    started_at: float
    since: float
    tensors: tuple[int, int] = (0, 0)
    status: Status | None = None
    stopping: str = ""

    def update(self, status: Status, now: float) -> None:
        """Take a new status; a new phase or message restarts the phase's clock."""
        old = self.status
        if old is None or (old.phase, old.message) != (status.phase, status.message):
            self.since = now
        self.status = status


def screen_lines(
    activity: Activity,
    prompts: Sequence[str],
    trees: Sequence[GrowingTree],
    size: tuple[int, int],
    now: float,
) -> list[Line]:
    """Return the lines of the live view, none wider than the screen.

    Args:
        activity: for the header.
        prompts: what stands above each tree.
        trees: one per prompt.
        size: columns and lines of the screen.
        now: seconds of the clock of `activity`.
    """
    width, height = size
    lines = [*_header(activity, now)]
    if any(tree.branches for tree in trees):
        lines += _forest(prompts, trees, width, height - _HEADER_LINES)
    return [fit(line, width) for line in lines[:height]]


def _header(activity: Activity, now: float) -> Iterator[Line]:
    elapsed = f" · {now - activity.started_at:.0f} s"
    yield Span("deft-jax ", "prompt"), Span(activity.title + elapsed, "label")
    spinner = Span(_SPINNER[int(now * 10) % len(_SPINNER)] + " ", "good")
    if activity.stopping:
        yield spinner, Span(activity.stopping, "notice")
    else:
        yield spinner, *_doing(activity, int(now - activity.since))


def _doing(activity: Activity, seconds: int) -> Line:
    status = activity.status
    if status is None:
        return Span("loading the model "), *_bar(*activity.tensors, "tensor")
    if status.phase == "compile":
        return (Span(f"{one_line(status.message)} ({seconds} s)"),)
    if status.phase == "prefill":
        done, total = status.prompt_tokens_done, status.prompt_tokens_total
        return Span("reading the prompt "), *_bar(done, total, "token")
    return (Span(counters(status)),)


def _bar(done: int, total: int, noun: str) -> Line:
    if not total:
        return ()
    filled = _BAR_CELLS * min(done, total) // total
    return (
        Span("━" * filled, "good"),
        Span("━" * (_BAR_CELLS - filled), "guide"),
        Span(f" {done}/{count(total, noun)}", "label"),
    )


def _forest(
    prompts: Sequence[str], trees: Sequence[GrowingTree], width: int, height: int
) -> Iterator[Line]:
    """Yield the trees, as many as fit, unfinished ones first."""
    fitting = max((height - 1) // _LINES_PER_TREE, 1)
    shown = range(len(trees))
    if len(trees) > fitting:
        ranked = sorted(shown, key=lambda index: trees[index].is_finished())
        shown = sorted(ranked[:fitting])
        height -= 1
    # Lines that cannot be shared evenly go to the trees at the top.
    lines, spare = divmod(height, len(shown))
    for place, index in enumerate(shown):
        yield (Span(head(one_line(prompts[index]), width), "prompt"),)
        yield from _tree(trees[index], width, lines - 1 + (place < spare))
    if len(shown) < len(trees):
        hidden = len(trees) - len(shown)
        yield (Span(f"… and {count(hidden, 'more prompt')}", "label"),)


def _tree(tree: GrowingTree, width: int, height: int) -> Iterator[Line]:
    """Yield the rows of a tree, each with as many lines of text as there is room."""
    rows, hidden = tree.rows(max(height, 1), max_guide=width // 3)
    if hidden:
        height -= 1
        rows, hidden = tree.rows(max(height, 1), max_guide=width // 3)
    texts = [one_line("".join(tree.branches[id].text for id in r.ids)) for r in rows]
    draw = _labelled if height >= 2 * len(rows) else _compact
    yield from draw(tree, rows, texts, width, height - len(rows))
    if hidden:
        yield (Span(f"… and {count(hidden, 'more branch')}", "label"),)


def _labelled(
    tree: GrowingTree,
    rows: Sequence[Row],
    texts: Sequence[str],
    width: int,
    room: int,
) -> Iterator[Line]:
    """Yield a line about each branch, and the end of its text below.

    Args:
        tree: where the branches are.
        rows: what to show.
        texts: text of each row, one line.
        width: cells of a line.
        room: lines of text, at least one per row.
    """
    wrapped = [
        wrap(text, width - cell_len(row.hanging))
        for row, text in zip(rows, texts, strict=True)
    ]
    given = share(room, [len(lines) for lines in wrapped])
    for row, lines, size in zip(rows, wrapped, given, strict=True):
        yield _label(row, tree)
        for line in lines[len(lines) - size :]:
            yield Span(row.hanging, "guide"), Span(line)


def _compact(
    tree: GrowingTree,
    rows: Sequence[Row],
    texts: Sequence[str],
    width: int,
    room: int,
) -> Iterator[Line]:
    """Yield a line per branch with the end of its text, for some on a second line.

    Args:
        tree: where the branches are.
        rows: what to show.
        texts: text of each row, one line.
        width: cells of a line.
        room: second lines, fewer than rows.
    """
    labels = [_short_label(row, tree.branches[row.id]) for row in rows]
    widths = [max(width - sum(len(s.text) for s in label), 0) for label in labels]
    # Texts that are much too long need not be measured, as in `tail`.
    is_long = [
        int(len(text) > 4 * width or cell_len(text) > width)
        for text, width in zip(texts, widths, strict=True)
    ]
    given = share(room, is_long)
    for index, row in enumerate(rows):
        text, last = texts[index], ""
        if given[index]:
            *above, last = wrap(text, width - cell_len(row.hanging))
            text = " ".join(above)
        yield *labels[index], Span(tail(text, widths[index]))
        if last:
            yield Span(row.hanging, "guide"), Span(last)


def share(room: int, wanted: Sequence[int]) -> list[int]:
    """Share lines among rows that want some, as evenly as may be.

    `share(7, [1, 9, 3])` is `[1, 3, 3]`: what the first leaves, the others get.
    """
    given = [0] * len(wanted)
    while room > 0:
        hungry = [i for i, most in enumerate(wanted) if given[i] < most][:room]
        if not hungry:
            break
        for index in hungry:
            given[index] += 1
        room -= len(hungry)
    return given


def _label(row: Row, tree: GrowingTree) -> Line:
    branch = tree.branches[row.id]
    tokens = sum(tree.branches[id].tokens for id in row.ids)
    label = f"{row.id} · {count(tokens, 'token')} · mean log-prob"
    line = Span(row.guide, "guide"), Span(f"{label} {branch.mean_logprob:.2f}", "label")
    if branch.finish_reason is None:
        return line
    reason = Span(branch.finish_reason, reason_role(branch.finish_reason))
    return *line, Span(" · ", "label"), reason


def _short_label(row: Row, branch: Branch) -> Line:
    mark = {None: "▸", "stop": "✓"}.get(branch.finish_reason, "■")
    numbers = f"{row.id:>3} {branch.path_tokens:>4} tok {branch.mean_logprob:>6.2f} "
    return (
        Span(row.guide, "guide"),
        Span(numbers, "label"),
        Span(f"{mark} ", reason_role(branch.finish_reason or "stop")),
    )
