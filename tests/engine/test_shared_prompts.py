"""Prompts and paths that later requests share: found, split, evicted, kept."""

from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from examples.beam_search import BeamSearch
from tests.support.tiny_model import (
    CAPACITY,
    AsciiTokenizer,
    decode_alone,
    tiny_model,
)

GREEDY = Sampling(temperature=0.0, max_new_tokens=8, ignore_eos=True)
HOT = Sampling(temperature=0.9, max_new_tokens=12, ignore_eos=True, seed=4)
PROMPT = "The quick brown fox jumps over the lazy dog."


def new_engine(capacity: Capacity = CAPACITY, **options) -> Engine:
    return Engine(tiny_model(), AsciiTokenizer(), capacity=capacity, **options)


def fed(engine: Engine, *prompts: str, n: int = 1, sampling: Sampling = GREEDY) -> int:
    """Generate, check every token, and return how many prompt tokens were fed."""
    before = engine.statistics()
    trees = engine.generate(prompts, BestOfN(n), sampling)
    for prompt, tree in zip(prompts, trees, strict=True):
        for branch, leaf in enumerate(tree.leaves()):
            assert leaf.tokens == decode_alone(prompt, sampling, branch).tokens
    after = engine.statistics()
    cached = after["cached_tokens"] - before["cached_tokens"]
    assert trees[0].stats.prompt_tokens_cached == cached
    assert trees[0].stats.prompt_tokens_done == sum(map(len, prompts))
    return int(after["prompt_tokens"] - before["prompt_tokens"] - cached)


def test_a_prompt_that_was_seen_is_not_fed_again():
    engine = new_engine()
    assert fed(engine, PROMPT) == len(PROMPT)
    assert fed(engine, PROMPT) == 1
    assert fed(engine, PROMPT, n=3, sampling=HOT) == 1
    assert fed(engine, PROMPT + " More") == len(" More")
    engine.state.tree.check()


def test_a_prompt_that_parts_in_the_middle_of_a_node_shares_up_to_the_token():
    engine = new_engine()
    fed(engine, PROMPT)
    for length in (30, 21, 17):
        assert fed(engine, PROMPT[:length] + "?!") == 2
    assert fed(engine, PROMPT[:25] + "0123") == 4
    assert fed(engine, PROMPT) == 1
    engine.state.tree.check()


def test_what_was_generated_is_shared_too():
    engine = new_engine()
    fed(engine, PROMPT, n=2, sampling=HOT)
    answer = "".join(map(chr, decode_alone(PROMPT, HOT, 1).tokens))
    assert fed(engine, PROMPT + answer + "And?") == len("And?") + 1
    engine.state.tree.check()


def test_prompts_that_come_together_are_fed_once():
    engine = new_engine()
    assert fed(engine, *[PROMPT + str(i) for i in range(8)]) == len(PROMPT) + 8
    trees = engine.generate([PROMPT + str(i) for i in range(8)], BestOfN(1), GREEDY)
    assert trees[0].stats.prompt_tokens_cached == 8 * len(PROMPT)


def test_a_strategy_that_keeps_no_paths_shares_its_prompt():
    engine = new_engine()
    beams = BeamSearch(width=2, length=6)
    (first,) = engine.generate(PROMPT, beams, GREEDY)
    (again,) = engine.generate(PROMPT, beams, GREEDY)
    assert [n.tokens for n in again.nodes] == [n.tokens for n in first.nodes]
    assert again.stats.prompt_tokens_cached == len(PROMPT) - 1
    engine.clear_cache()
    assert engine.state.tree.num_free_pages == CAPACITY.pages
    assert engine.state.tree.num_free_nodes == CAPACITY.nodes


def test_the_pool_holds_what_is_cached_and_makes_room_for_what_is_new():
    engine = new_engine()
    prompts = [f"{i:02d}" * 25 for i in range(30)]
    for prompt in prompts:
        fed(engine, prompt)
        tree = engine.state.tree
        tree.check()
        held = sum(-(-len(n.tokens) // 8) for n in engine._work.forest.cache.nodes())
        assert CAPACITY.pages - int(tree.num_free_pages) <= held
    assert engine.statistics()["evicted_nodes"] > 0
    assert fed(engine, prompts[-1]) == 1
    assert fed(engine, prompts[0]) == len(prompts[0])
    engine.clear_cache()
    assert engine.state.tree.num_free_pages == CAPACITY.pages
    assert not engine.state.tree.live.any()


def test_a_path_that_is_pinned_outlives_others():
    engine = new_engine()
    handle = engine.submit(PROMPT, sampling=GREEDY, pin=True)
    handle.result(300)
    for i in range(20):
        fed(engine, f"{i:02d}" * 25)
    assert engine.statistics()["evicted_nodes"] > 0
    assert fed(engine, PROMPT) == 1
    engine.unpin(handle.pin)
    for i in range(20):
        fed(engine, f"{i:02d}" * 25 + "!")
    assert fed(engine, PROMPT) == len(PROMPT)


def test_nothing_is_shared_where_nobody_wants_it():
    engine = new_engine(prefix_cache=False)
    for _ in range(2):
        assert fed(engine, PROMPT) == len(PROMPT)
        assert engine.state.tree.num_free_pages == CAPACITY.pages


def test_another_network_shares_nothing():
    engine = new_engine()
    fed(engine, PROMPT)
    engine.model = tiny_model()
    assert fed(engine, PROMPT) == len(PROMPT)


def test_a_capacity_without_room_to_share_still_serves():
    """Nodes and pages for the prompt and its branches, and no more."""
    n = 3
    pages = 6 + n
    capacity = Capacity(
        requests=1, rows=n, nodes=n + 1, pages=pages, page_size=8, chunk=32
    )
    engine = new_engine(capacity)
    for _ in range(2):
        assert fed(engine, PROMPT, n=n) == len(PROMPT)
        assert engine.state.tree.num_free_pages == pages
