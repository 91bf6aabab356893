"""Stop strings: where a branch's text ends, and what of it is safe to show."""

from collections.abc import Mapping

from deft_jax.errors import DeftError

_FIRST_MARK = 0xD800
"""Half of a surrogate pair, which no decoded text holds."""


class StopMatcher:
    """Watches the text of one branch for the first stop string.

    The stop that is completed first ends the branch; of several that the same
    character completes, the one that begins first. So the result does not depend on
    how the text is cut into pieces. Positions count characters from the beginning of
    the text that the matcher, or the one it was copied from, was given.

    A special token has no text, but a stop string may name it: there a mark stands for
    the token, in the stop string and in the text that is watched, not in what is shown.
    """

    __slots__ = ("_stops", "_marks", "_held", "_released", "_stop_at")

    def __init__(
        self, stops: tuple[str, ...], special_tokens: Mapping[str, int] | None = None
    ):
        """Watch for stop strings.

        Args:
            stops: the stop strings, which may be none.
            special_tokens: name of each token without text to its id.

        Raises:
            DeftError: a stop string is empty.
        """
        if "" in stops:
            raise DeftError(
                f"expected stop strings of at least 1 character, got {list(stops)}; "
                "leave out the empty one"
            )
        self._marks: dict[int, str] = {}
        spelled = [self._spell(stop, special_tokens or {}) for stop in stops]
        self._stops = tuple(dict.fromkeys([*stops, *spelled]))
        self._held = ""
        self._released = 0
        self._stop_at: int | None = None

    @property
    def stop_at(self) -> int | None:
        """Position of the stop string, where the branch's text ends; None before."""
        return self._stop_at

    def push(self, text: str, token: int | None = None) -> str:
        """Add text; return what no stop string can take back any more.

        Text that may be the beginning of a stop string is held back. From the stop
        string on, nothing is returned.

        Args:
            text: what the token adds.
            token: id of the token, None where the text is not of one.
        """
        if self._stop_at is not None:
            return ""
        mark = "" if token is None else self._marks.get(token, "")
        window = self._held + text + mark
        begin = self._find(window)
        if begin is not None:
            shown = self._release(window, begin, held="")
            self._stop_at = self._released
            return shown
        cut = len(window) - self._num_held(window)
        return self._release(window, cut, held=window[cut:])

    def flush(self) -> str:
        """Return the text held back, once no more will come."""
        return self._release(self._held, len(self._held), held="")

    def copy(self) -> "StopMatcher":
        """Return an independent matcher in the same state."""
        twin = StopMatcher(self._stops)
        twin._marks = self._marks
        twin._held = self._held
        twin._released = self._released
        twin._stop_at = self._stop_at
        return twin

    def _spell(self, stop: str, special_tokens: Mapping[str, int]) -> str:
        """Return a stop string with a mark for each special token that it names."""
        for name in sorted(special_tokens, key=len, reverse=True):
            if name in stop:
                mark = chr(_FIRST_MARK + len(self._marks))
                mark = self._marks.setdefault(special_tokens[name], mark)
                stop = stop.replace(name, mark)
        return stop

    def _find(self, window: str) -> int | None:
        """Return where the stop begins that is completed first in `window`."""
        begins = [(window.find(stop), len(stop)) for stop in self._stops]
        found = [(begin + size, begin) for begin, size in begins if begin >= 0]
        return min(found)[1] if found else None

    def _num_held(self, window: str) -> int:
        """Return the length of the longest end of `window` that begins a stop string.

        window "so EN", stops "END", "N!"  ->  2, of "EN"
        """
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(window)), 0, -1):
            end = window[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0

    def _release(self, window: str, end: int, *, held: str) -> str:
        shown = window[:end]
        for mark in self._marks.values():
            shown = shown.replace(mark, "")
        self._released += len(shown)
        self._held = held
        return shown
