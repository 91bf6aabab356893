"""What the engine tells while it runs: tokens, counters, pages."""

import time
from collections import defaultdict

import numpy as np
import pytest

from deft_jax.engine.progress import count_reads
from deft_jax.runtime.state import StepLog
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from tests.support.tiny_model import CAPACITY, path_logprobs, tiny_engine

PROMPTS = ["x", "Hello world", "The quick brown fox jumps over it.", "12345678"]
SAMPLING = Sampling(temperature=0.9, max_new_tokens=24, seed=7, stop=("3s", "Aq", "Ko"))


class Listener:
    """Keeps what the engine reports, and the pages that open branches should take."""

    def __init__(self, prompts):
        self.events, self.statuses, self.pages_used = [], [], []
        self.expected_pages = []
        self._prompts = [len(prompt) for prompt in prompts]
        self._lengths = defaultdict(dict)

    def on_token(self, event):
        self.events.append(event)
        branches = self._lengths[event.request]
        branches[event.node] = branches.get(event.node, 0) + 1
        if event.finish_reason is not None:
            branches[event.node] = 0

    def on_status(self, status):
        self.statuses.append(status)
        if status.phase == "decode":
            self.pages_used.append(status.pages_used)
            self.expected_pages.append(sum(map(self._pages, self._lengths)))

    def _pages(self, request):
        lengths = [length for length in self._lengths[request].values() if length]
        sizes = [self._prompts[request], *lengths] if lengths else []
        return sum(-(-size // CAPACITY.page_size) for size in sizes)


@pytest.fixture(scope="module")
def run():
    """Return a listener and the trees of a call that refills its slots."""
    listener = Listener(PROMPTS)
    trees = tiny_engine().generate(
        PROMPTS,
        BestOfN(4),
        SAMPLING,
        on_token=listener.on_token,
        on_status=listener.on_status,
    )
    return listener, trees


def test_events_make_up_every_branch_in_order(run):
    listener, trees = run
    tokens, text, logprobs = (defaultdict(list) for _ in range(3))
    reasons = {}
    for event in listener.events:
        at = event.request, event.node
        assert at not in reasons
        tokens[at].append(event.token)
        text[at].append(event.text)
        logprobs[at].append(event.logprob)
        if event.finish_reason is not None:
            reasons[at] = event.finish_reason
    for tree in trees:
        for leaf in tree.leaves():
            at = tree.request, leaf.id
            assert tuple(tokens[at]) == leaf.tokens
            assert "".join(text[at]) == leaf.text
            assert tuple(logprobs[at]) == leaf.logprobs
            assert reasons[at] == leaf.finish_reason
    assert len(tokens) == 4 * len(PROMPTS)


def test_events_of_a_step_come_together(run):
    """Branches that grow side by side are never more than a step apart."""
    listener, _ = run
    grown = defaultdict(int)
    open_branches = defaultdict(set)
    for event in listener.events:
        branches = open_branches[event.request]
        branches.add(event.node)
        grown[event.request, event.node] += 1
        counts = [grown[event.request, node] for node in branches]
        assert max(counts) - min(counts) <= 1
        if event.finish_reason is not None:
            branches.discard(event.node)


def test_logprobs_are_the_log_softmax_of_the_models_logits(run):
    _, trees = run
    for tree in trees:
        for leaf in tree.leaves():
            prompt = tree.nodes[0].tokens
            exact = path_logprobs([*prompt, *leaf.tokens])[len(prompt) - 1 : -1]
            exact = exact[np.arange(len(leaf.tokens)), list(leaf.tokens)]
            np.testing.assert_allclose(leaf.logprobs, exact, atol=2e-4)


def test_finished_branches_free_their_pages_at_once():
    """Without stop strings, which the host sees, a burst later; a chunk holds three."""
    prompts = ["x", "Hello world", "The quick brown", "12345678"]
    listener = Listener(prompts)
    tiny_engine().generate(
        prompts,
        BestOfN(4),
        Sampling(temperature=0.9, max_new_tokens=24, seed=7),
        on_token=listener.on_token,
        on_status=listener.on_status,
    )
    assert listener.pages_used == listener.expected_pages
    used = listener.pages_used
    assert any(0 < later < now for now, later in zip(used, used[1:], strict=False))
    assert used[-1] == 0


def test_a_stop_string_frees_its_branch_with_the_next_burst(run):
    listener, _ = run
    late = np.array(listener.pages_used) - np.array(listener.expected_pages)
    assert np.all(late >= 0) and np.any(late > 0)
    assert late[-1] == 0 == listener.pages_used[-1]


def test_statuses_run_from_prefill_to_done(run):
    listener, trees = run
    phases = [status.phase for status in listener.statuses if status.phase != "compile"]
    assert phases[0] == "prefill" and phases[-1] == "done"
    assert set(phases) == {"prefill", "decode", "done"}
    last = listener.statuses[-1]
    assert last.prompt_tokens_done == last.prompt_tokens_total == len("".join(PROMPTS))
    assert last.generated_tokens == len(listener.events)
    assert last.pages_total == CAPACITY.pages and last.live_branches == 0
    assert all(tree.stats == last for tree in trees)
    for name in ("elapsed_s", "prompt_tokens_done", "generated_tokens"):
        values = [getattr(status, name) for status in listener.statuses]
        assert values == sorted(values)


def host_count(trees):
    """Return the cached tokens that steps of parallel branches read: shared, alone.

    A step feeds the token that the step before chose, and each fed token sees its path,
    itself counted. The last token of a branch is never fed.
    """
    shared = alone = 0
    for tree in trees:
        prompt = len(tree.nodes[0].tokens)
        fed = [len(leaf.tokens) - 1 for leaf in tree.leaves()]
        for step in range(1, max(fed) + 1):
            live = sum(length >= step for length in fed)
            shared += prompt + live * step
            alone += live * (prompt + step)
    return shared, alone


def test_kv_reads_equal_a_count_on_the_host():
    sampling = Sampling(temperature=0.9, max_new_tokens=24, seed=7)
    trees = tiny_engine().generate(PROMPTS, BestOfN(4), sampling)
    stats = trees[0].stats
    counted = stats.kv_tokens_read, stats.kv_tokens_read_per_sequence
    assert counted == host_count(trees)
    assert stats.kv_read_saved == 1 - counted[0] / counted[1] > 0.3


def test_a_single_branch_saves_nothing():
    trees = tiny_engine().generate(PROMPTS, sampling=Sampling(max_new_tokens=8))
    stats = trees[0].stats
    assert stats.kv_tokens_read == stats.kv_tokens_read_per_sequence
    assert stats.kv_read_saved == 0


def test_reads_are_counted_exactly_however_many_they_are():
    """float32 counts to 2**24 only, int32 to 2**31."""
    steps, rows = 64, 1024
    packed = np.zeros((steps + 1, len(StepLog.__dataclass_fields__), rows), np.int32)
    log = StepLog.unpack(packed)
    log.tree_tokens[:] = 2**24 + 1
    log.path_tokens[:] = 2**21 + 1
    log.path_tokens[:, 1] = 7
    tree, paths = count_reads(log, steps)
    assert tree == 64 * (2**24 + 1)
    assert paths == 64 * (1023 * (2**21 + 1) + 7) > 2**36


def test_what_has_to_wait_is_told():
    statuses = []
    tiny_engine().generate(
        PROMPTS, BestOfN(8), Sampling(max_new_tokens=4), on_status=statuses.append
    )
    told = [status.message for status in statuses if "wait" in status.message]
    assert told[0].endswith("; 2 more prompts wait for their turn")


def test_no_second_is_counted_for_the_prompt_and_for_decoding():
    """The first burst is started while the device is still at the last chunk."""
    greedy = Sampling(temperature=0.0, max_new_tokens=2, ignore_eos=True)
    tiny_engine().generate("a" * 100, sampling=greedy)  # Compiles.
    begin = time.perf_counter()
    (tree,) = tiny_engine().generate("a" * 100, sampling=greedy)
    seconds = time.perf_counter() - begin
    assert 0 < tree.prefill_s and 0 < tree.decode_s
    assert tree.prefill_s + tree.decode_s <= seconds
