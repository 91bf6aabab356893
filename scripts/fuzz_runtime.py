"""Lets requests come and go at random, and compares every token with it alone.

    python -m scripts.fuzz_runtime --minutes 30 --seed 1

Prompts share beginnings through the cache, which is split and evicted; the pool is so
small that requests are preempted; clients on several threads submit, cancel, read and
listen, and another runs programs over branches. Some requests wait for scores of the
host. Ends with the first result that is wrong, or with counts of what was done.
"""

import argparse
import collections
import dataclasses
import functools
import random
import sys
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import numpy as np

from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.sampling.noise import ROOT_KEY
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from examples.beam_search import BeamSearch
from tests.support.random_programs import run_program
from tests.support.strategies.host_scored import HostScored
from tests.support.tiny_model import (
    AsciiTokenizer,
    decode_alone,
    path_logprobs,
    tiny_model,
)

CLIENTS = 3
MOST_OPEN = 5
"""Requests of one client that run at the same time."""

CAPACITIES = (
    Capacity(requests=4, rows=16, nodes=48, pages=24, page_size=8, chunk=32),
    Capacity(requests=8, rows=16, nodes=160, pages=96, page_size=8, chunk=32),
)
WORDS = ("the quick brown fox ", "jumps over ", "a lazy dog and ", "then it sleeps. ")
LIMIT = 3e-4
"""Largest error of a log-probability."""


@dataclasses.dataclass
class Job:
    """A request under way.

    Attributes:
        kind: "grow", "beam", "read" or "scored".
        prompt: its text.
        sampling: how tokens are chosen.
        n: branches.
        key: sampling key of its root.
        score_from: first token that is scored.
        handle: its result to come.
        told: tokens that were told, by node.
        is_cancelled: true if it may end early.
    """

    kind: str
    prompt: str
    sampling: Sampling
    n: int = 1
    key: int = ROOT_KEY
    score_from: int = 1
    handle: Any = None
    told: dict[int, list[int]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    is_cancelled: bool = False


class Wrong(Exception):
    """A result is not what the request alone gives."""


@functools.cache
def beam_alone(prompt: str, width: int) -> tuple:
    """Return the leaves of a beam search on an engine that holds nothing else."""
    (tree,) = reference().generate(prompt, BeamSearch(width=width, length=8), GREEDY)
    return tuple(leaf.tokens for leaf in tree.leaves())


@functools.cache
def reference() -> Engine:
    """Return the engine that runs one request at a time and caches nothing."""
    return Engine(
        tiny_model(), AsciiTokenizer(), capacity=CAPACITIES[1], prefix_cache=False
    )


@functools.cache
def alone(prompt: str, sampling: Sampling, branch: int, key: int):
    """Return what a branch gives without an engine."""
    return decode_alone(prompt, sampling, branch, key=key)


GREEDY = Sampling(temperature=0.0, max_new_tokens=8)
SCORED = Sampling(temperature=0.9, max_new_tokens=10, ignore_eos=True)
BEAM_LOCK = threading.Lock()


def _by_id(tree) -> dict[int, float]:
    """Let the host think for a while, and prefer the first of the branches."""
    time.sleep(0.002)
    return {leaf.id: -float(leaf.id) for leaf in tree.leaves()}


class Client:
    """Submits at random and checks what comes back."""

    def __init__(self, engine: Engine, seed: int, counts: collections.Counter):
        self.engine, self.counts = engine, counts
        self.random = random.Random(seed)
        self.jobs: list[Job] = []
        self.pins: list[Any] = []

    def step(self) -> None:
        """Do one thing: submit, cancel, wait, unpin, clear, or nothing."""
        draw = self.random.random()
        if draw < 0.5 and len(self.jobs) < MOST_OPEN:
            self.submit()
        elif draw < 0.56 and self.jobs:
            job = self.random.choice(self.jobs)
            job.is_cancelled = True
            job.handle.cancel()
            self.counts["cancelled"] += 1
        elif draw < 0.6 and self.pins:
            self.engine.unpin(self.pins.pop(self.random.randrange(len(self.pins))))
        elif draw < 0.605:
            self.engine.clear_cache()
            self.counts["cache cleared"] += 1
        elif self.jobs:
            self.check(self.jobs.pop(self.random.randrange(len(self.jobs))))
        else:
            time.sleep(self.random.random() * 0.01)

    def prompt(self) -> str:
        """Return a prompt that may share its beginning with others."""
        words = [self.random.choice(WORDS) for _ in range(self.random.randint(1, 4))]
        text = "".join(words)
        cut = self.random.randint(1, len(text))
        return text[:cut] + self.random.choice(["", "x", "yz", "0123"])

    def submit(self) -> None:
        """Submit a request of a random kind."""
        pick = self.random.choice
        prompt = self.prompt()[:70]
        priority = pick([0, 0, 0, 1, 2])
        pin = self.random.random() < 0.1
        kind = pick(["grow", "grow", "grow", "beam", "read", "scored"])
        if kind == "read":
            first = self.random.randint(1, len(prompt))
            job = Job(kind, prompt, GREEDY, score_from=first)
            job.handle = self.engine.read(
                prompt, score_from=first, top=3, priority=priority, pin=pin
            )
        elif kind == "scored":
            job = Job(kind, prompt, SCORED, n=2)
            job.handle = self.engine.submit(
                prompt, HostScored(2, 6, _by_id), SCORED, priority=priority
            )
        elif kind == "beam":
            job = Job(kind, prompt, GREEDY, n=pick([2, 3]))
            job.handle = self.engine.submit(
                prompt, BeamSearch(width=job.n, length=8), GREEDY, priority=priority
            )
        else:
            sampling = Sampling(
                temperature=pick([0.0, 0.9, 0.9]),
                max_new_tokens=pick([1, 5, 20, 40]),
                seed=pick([1, 2, 3]),
                stop=pick([(), (), ("a",), ("xy", "Q")]),
                ignore_eos=pick([True, False]),
                repetition_penalty=pick([1.0, 1.0, 1.2]),
            )
            job = Job(kind, prompt, sampling, n=pick([1, 1, 2, 4]), key=pick([0, 7]))
            listens = self.random.random() < 0.5
            told = job.told
            job.handle = self.engine.submit(
                prompt,
                BestOfN(job.n),
                sampling,
                key=job.key,
                priority=priority,
                pin=pin,
                on_token=(lambda event: told[event.node].append(event.token))
                if listens
                else None,
            )
        self.jobs.append(job)
        self.counts[kind] += 1

    def check(self, job: Job) -> None:
        """Wait for a request and compare it with what it gives alone."""
        try:
            result = job.handle.result(timeout=300)
        except CancelledError:
            if job.kind == "read" and job.is_cancelled:
                return
            raise
        if job.handle.pin is not None:
            self.pins.append(job.handle.pin)
        if job.kind == "read":
            self.check_reading(job, result)
            return
        if result.notice is not None and self.fits(job):
            raise Wrong(f"{job}: {result.notice}")
        reasons = {leaf.finish_reason for leaf in result.leaves()}
        early = reasons & {"interrupted", "capacity"}
        if "interrupted" in reasons and not job.is_cancelled:
            raise Wrong(f"{job}: interrupted, and nobody asked for it")
        if job.kind == "beam":
            leaves = tuple(leaf.tokens for leaf in result.leaves())
            with BEAM_LOCK:
                expected = beam_alone(job.prompt, job.n)
            if not early and leaves != expected:
                reasons = [leaf.finish_reason for leaf in result.leaves()]
                raise Wrong(f"{job}: {leaves} {reasons}, alone {expected}")
            return
        for branch, leaf in enumerate(result.leaves()):
            if leaf.parent is None:
                continue
            lone = alone(job.prompt, job.sampling, branch, job.key)
            expected = lone.tokens[: len(leaf.tokens)] if early else lone.tokens
            if job.kind == "scored" and branch == 1 and not early:
                expected = lone.tokens[:6]  # It has the lower score after a round.
                lone = lone._replace(finish_reason="pruned")
            if leaf.tokens != expected:
                raise Wrong(
                    f"{job}: branch {branch} {leaf.tokens}, alone {lone.tokens}"
                )
            if not early and leaf.finish_reason != lone.finish_reason:
                raise Wrong(f"{job}: {leaf.finish_reason}, alone {lone.finish_reason}")
            error = np.abs(
                np.array(leaf.logprobs) - np.array(lone.logprobs[: len(leaf.tokens)])
            )
            if error.size and error.max() > LIMIT:
                raise Wrong(f"{job}: log-probabilities are off by {error.max()}")
            if job.told and tuple(job.told[leaf.id]) != leaf.tokens:
                raise Wrong(f"{job}: told {job.told[leaf.id]}, got {leaf.tokens}")

    def fits(self, job: Job) -> bool:
        """Say whether a request fits an empty pool with all its branches."""
        capacity = self.engine.capacity
        assert capacity is not None
        limit = capacity.pages_for(job.sampling.max_new_tokens)
        needed = capacity.pages_for(len(job.prompt)) + 1 + job.n * (limit + 1)
        return needed <= capacity.pages

    def check_reading(self, job: Job, reading: Any) -> None:
        """Compare log-probabilities with those of the whole text alone."""
        ids = AsciiTokenizer().encode(job.prompt)
        if job.is_cancelled and not reading.top:
            return
        logits = path_logprobs(ids)
        expected = [logits[at - 1, ids[at]] for at in range(job.score_from, len(ids))]
        if len(reading.logprobs) != len(expected):
            raise Wrong(f"{job}: {len(reading.logprobs)} scores of {len(expected)}")
        if not np.allclose(reading.logprobs, expected, atol=LIMIT):
            raise Wrong(f"{job}: scores {reading.logprobs}, alone {expected}")
        best = int(np.argmax(logits[-1]))
        if reading.top[0][0] != best:
            raise Wrong(f"{job}: the likeliest is {reading.top[0]}, alone {best}")


def check_idle(engine: Engine) -> None:
    """Check the forest of an engine on which nothing runs."""
    state = engine.state
    state.tree.check()
    engine.clear_cache()
    tree, capacity = engine.state.tree, engine.capacity
    assert capacity is not None
    free = int(tree.num_free_pages), int(tree.num_free_nodes)
    if free != (capacity.pages, capacity.nodes):
        raise Wrong(f"{free} pages and nodes are free of {capacity}")


def fuzz(seconds: float, seed: int, capacity: Capacity) -> collections.Counter:
    """Run clients for a time; return what they did.

    Raises:
        Wrong: a result was not what it is alone.
    """
    counts: collections.Counter = collections.Counter()
    engine = Engine(tiny_model(), AsciiTokenizer(), capacity=capacity, debug=False)
    end = time.monotonic() + seconds
    errors: list[BaseException] = []

    def run(index: int) -> None:
        client = Client(engine, seed * 1000 + index, counts)
        try:
            while time.monotonic() < end and not errors:
                client.step()
            for job in client.jobs:
                client.check(job)
            for pin in client.pins:
                engine.unpin(pin)
        except BaseException as error:
            errors.append(error)

    def run_programs() -> None:
        dice = random.Random(seed)
        prompts = ["".join(dice.choices(WORDS, k=2))[: dice.randint(3, 40)]]
        try:
            while time.monotonic() < end and not errors:
                with engine.session() as session:
                    run_program(dice, session, prompts, steps=8, longest=64, most=4)
                counts["programs"] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(CLIENTS)]
    threads.append(threading.Thread(target=run_programs))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    check_idle(engine)
    counts.update({name: int(x) for name, x in engine.statistics().items()})
    return counts


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Lets requests come and go at random.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total: collections.Counter = collections.Counter()
    end = time.monotonic() + 60 * arguments.minutes
    round_ = 0
    while time.monotonic() < end:
        capacity = CAPACITIES[round_ % len(CAPACITIES)]
        seed = arguments.seed + round_
        try:
            total += fuzz(min(60.0, end - time.monotonic()), seed, capacity)
        except Exception as error:
            print(f"seed {seed}, {capacity}: {type(error).__name__}: {error}")
            raise
        round_ += 1
        print(f"round {round_}, seed {seed}: {dict(total)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
