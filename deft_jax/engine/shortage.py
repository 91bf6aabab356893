"""What gives way when pages or nodes run short: first cached paths, then requests."""

from collections.abc import Iterable

from deft_jax.engine.live_request import LiveRequest
from deft_jax.engine.work import Work
from deft_jax.tree.state import OUT_OF_NODES


class Shortage:
    """Makes room, so that one request's shortage ends no other one."""

    def __init__(self, work: Work):
        self.work = work

    def make_room(self) -> None:
        """Evict cached paths, preempt a request, or end the only one there is.

        Where a request was preempted none starts or goes on before another has left.
        """
        forest = self.work.forest
        lives = list(forest.lives.values())
        short = [live for live in self.work.short if live in lives]
        self.work.short = []
        gives_way = bool(forest.pending.dropped) or forest.replay.has_dropped
        forest.pending.clears = True
        if gives_way or not short:
            return
        rows = sum(len(live.rows) for live in lives)
        tokens = sum(min(live.num_to_feed, forest.rooms.chunk) for live in lives)
        pages = rows + forest.rooms.pages_for(tokens) + 1
        nodes = rows + 2 if forest.numbers.overflow & OUT_OF_NODES else 0
        if gone := forest.evict(pages, nodes) or forest.evict_finished():
            self.work.log.add("evict", nodes=gone)
            return
        holders = [
            live
            for live in lives
            if (live.has_begun or live in short) and not live.is_preempted
        ]
        chosen = victim(holders)
        if chosen is not None:
            self._preempt(chosen)
        elif not (forest.evict(pages, nodes, pinned=True) or forest.release_shared()):
            for live in holders:
                live.ends_as, live.notice = "capacity", self._ran_out(live)
                self.work.end_early(live)

    def _preempt(self, live: LiveRequest) -> None:
        """Free the pages of a request; it goes on later, where it was."""
        self.work.log.add("preempt", request=live.request.index, slot=live.slot)
        self.work.is_held = True
        if live.root is not None:
            self.work.forest.release(live)
            return
        self.work.forest.drop(live)
        self.work.forest.leave(live)
        self.work.note_change()
        with self.work.listening(live.call):
            live.call.progress.count_prompt(
                -live.num_counted, -live.num_cached, len(self.work.waiting) + 1
            )
        self.work.waiting.put_back(live.request, live.call)

    def _ran_out(self, live: LiveRequest) -> str:
        rooms = self.work.forest.rooms
        tokens = live.call.progress.status.generated_tokens
        return (
            f"the KV pool of {rooms.pages} pages of {rooms.page_size} tokens and "
            f"{rooms.nodes} nodes ran out after {tokens} tokens; what was generated is "
            "kept; raise the capacity, or lower n or max_new_tokens"
        )


def victim(lives: Iterable[LiveRequest]) -> LiveRequest | None:
    """Return the request to preempt: of the lowest priority the one that came last.

    Where there is one alone it is not preempted, so that somebody goes on.

    Args:
        lives: the requests that hold pages, or want some.
    """
    holders = list(lives)
    if len(holders) < 2:
        return None
    return min(holders, key=lambda live: (live.request.priority, -live.number))
