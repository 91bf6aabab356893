"""Text of models and users made safe and fit for a terminal.

Widths are counted in cells: a wide character takes two, a combining mark none.
"""

import re

from rich.cells import cell_len, chop_cells, get_character_cell_size

ELLIPSIS = "…"
_NEWLINE_MARK = " ↵ "

# C0 and C1 controls steer a terminal; bidirectional controls reorder what is around
# them; surrogates cannot be encoded.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_UNSAFE_BUT_LAYOUT = re.compile(f"(?![\n\t]){_UNSAFE.pattern}")


def printable(text: str) -> str:
    r"""Return `text` with every control character but `\n` and `\t` as an escape."""
    return _UNSAFE_BUT_LAYOUT.sub(_escape, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return `text` on one line, with a mark for line ends and controls escaped."""
    marked = re.sub(r"[ \t\r]*\n\s*", _NEWLINE_MARK, text.strip(" \t\r\n"))
    return _UNSAFE.sub(_escape, marked.replace("\t", "    "))


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def head(text: str, width: int) -> str:
    """Return the start of one line of text in `width` cells."""
    if cell_len(text) <= width:
        return text
    if width < 2:
        return ELLIPSIS[:width]
    return chop_cells(text, width - 1)[0].rstrip() + ELLIPSIS


def tail(text: str, width: int) -> str:
    """Return the end of one line of text in `width` cells."""
    if len(text) <= 4 * width and cell_len(text) <= width:
        return text
    if width < 1:
        return ""
    start, size = len(text), 0
    while start and size < width - 1:
        start -= 1
        size += get_character_cell_size(text[start])
    piece = text[start:]
    # Some sequences are wider than their characters, and the last step may overshoot.
    while cell_len(piece) > width - 1:
        piece = piece[1:]
    return ELLIPSIS + piece.lstrip()


def excerpt(text: str, width: int) -> str:
    """Return both ends of one line of text in `width` cells.

    The end is kept because answers tend to stand there.
    """
    if cell_len(text) <= width:
        return text
    end = width // 3
    return f"{head(text, width - end - 1)} {tail(text, end)[1:].lstrip()}"


def wrap(text: str, width: int) -> list[str]:
    """Break one line of text at spaces into lines of at most `width` cells.

    A word wider than a line is broken anywhere.
    """
    lines, size = [""], 0
    for word in text.split(" "):
        space, cells = " " if lines[-1] else "", cell_len(word)
        if size + len(space) + cells <= width:
            lines[-1] += space + word
            size += len(space) + cells
        elif cells <= width:
            lines.append(word)
            size = cells
        else:
            lines[-1:] = chop_cells(lines[-1] + space + word, max(width, 2))
            size = cell_len(lines[-1])
    return [line for line in lines if line]
