"""Replays of speculative decoding: what is kept, its KV, its pages, and the judging."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.bench.trees.draft_replay import DraftReplay, capacity
from deft_jax.bench.trees.draft_templates import DraftTemplate, speculative
from deft_jax.capacity import Capacity
from deft_jax.engine.engine import Engine
from deft_jax.engine.runner import run_decode
from deft_jax.errors import CapacityError
from deft_jax.sampling.params import Sampling
from deft_jax.strategies.parallel import BestOfN
from deft_jax.strategies.protocol import View
from deft_jax.tree.state import Tree
from tests.runtime.test_one_trace import num_traces
from tests.support.bench.replay_engines import (
    ReplayEngine,
    TightEngine,
    WatchedEngine,
)
from tests.support.tiny_model import CONFIG, path_logprobs, tiny_model

PROMPT = 19
ACCEPTS = (1, 5, 3, 1, 1, 4, 2, 5, 2, 4, 3, 1, 5)
"""Thirteen, so that the last step with drafts is the last of a watched burst: after
1, 5, 9 and 13 steps."""


def brief(template: DraftTemplate) -> DraftTemplate:
    """Return the same draft tree in a text that the dense model can read."""
    return dataclasses.replace(template, prompt_tokens=PROMPT, accept_lengths=ACCEPTS)


RANKED = DraftTemplate.create(
    "ranked",
    PROMPT,
    [[2], [0], [2, 1], [0, 0], [2, 1, 3], [1], [0, 0, 0], [2, 1, 3, 0], [2, 0]],
    ACCEPTS,
)
"""The kept path has drafts of many ranks, so that no two neighbours are the same."""

REAL, STAR = brief(speculative(32)), brief(speculative(32, "star"))
TEMPLATES = [RANKED, REAL, STAR]
PAGE_SIZE = 8
CAPACITY = capacity(REAL, PAGE_SIZE)

each_template = pytest.mark.parametrize(
    "template", TEMPLATES, ids=lambda template: template.name
)


def prompt(first: int = 40) -> list[int]:
    return [first + at * 3 for at in range(PROMPT)]


def replay(engine: Engine, template: DraftTemplate, **options):
    strategy = DraftReplay(template)
    (tree,) = engine.generate(prompt(), strategy, strategy.sampling, **options)
    return tree


def paths_down(template: DraftTemplate, tokens) -> list[list[int]]:
    """Return the tokens [T] of a step from the trunk's down to each row's."""
    paths = [[int(tokens[0])]]
    for row, parent in enumerate(template.parents[1:], 1):
        paths.append([*paths[parent], int(tokens[row])])
    return paths


def longest_agreed(template: DraftTemplate, tokens, says) -> int:
    """Drafts on the longest path of which each is what the row above says."""
    length = [0]
    for row, parent in enumerate(template.parents[1:], 1):
        right = length[parent] >= 0 and tokens[row] == says[parent]
        length.append(length[parent] + 1 if right else -1)
    return max(length)


@dataclasses.dataclass
class Told:
    """What a watched replay did: tokens [S, T], the result and the states."""

    template: DraftTemplate
    tokens: np.ndarray
    branch: tuple[int, ...]
    logprobs: tuple[float, ...]
    bursts: list
    stats: object

    def text(self, step: int) -> list[int]:
        """Prompt and tokens kept before a step."""
        text = prompt()
        for tip, tokens in zip(self.template.tips[:step], self.tokens, strict=False):
            text += paths_down(self.template, tokens)[tip]
        return text


@pytest.fixture(scope="module")
def told():
    """Return watched replays of all templates, by name."""
    watched = {}
    for template in TEMPLATES:
        engine = WatchedEngine(CAPACITY)
        tree = replay(engine, template)
        assert tree.notice is None and len(tree.nodes) == 2
        tokens = [burst.log.token for burst in engine.runner.bursts]
        tokens = np.concatenate(tokens)[: template.steps, : template.num_tokens]
        branch = tree.nodes[1]
        watched[template.name] = Told(
            template,
            tokens,
            branch.tokens,
            branch.logprobs,
            engine.runner.bursts,
            tree.stats,
        )
        assert engine.state.tree.num_free_pages == CAPACITY.pages
        assert engine.state.tree.num_free_nodes == CAPACITY.nodes
    return watched


@each_template
def test_what_is_kept_is_the_path_of_each_accept_length(told, template):
    replayed = told[template.name]
    assert len(replayed.branch) == sum(ACCEPTS)
    assert replayed.text(template.steps) == prompt() + list(replayed.branch)
    stats = replayed.stats
    assert stats.kv_tokens_read == template.live_tokens.sum()
    assert stats.kv_tokens_read_per_sequence == template.path_tokens.sum()


@each_template
def test_tokens_are_the_models_own(told, template):
    """The trunk's is the likeliest after the text, a draft one of the others."""
    replayed = told[template.name]
    for step, tokens in enumerate(replayed.tokens):
        order = np.argsort(-path_logprobs(replayed.text(step))[-1], kind="stable")
        assert tokens[0] == order[0]
        assert tokens[1:].tolist() == order[list(template.ranks[1:])].tolist()


@each_template
def test_logprobs_are_those_of_the_final_text(told, template):
    replayed = told[template.name]
    exact = path_logprobs(prompt() + list(replayed.branch))[PROMPT - 1 : -1]
    exact = exact[np.arange(len(replayed.branch)), list(replayed.branch)]
    np.testing.assert_allclose(replayed.logprobs, exact, atol=2e-4, rtol=1e-5)


@each_template
def test_every_draft_sees_its_own_path(told, template):
    """After the last step of each burst, logits as one sequence alone gives them."""
    replayed, step, looked_at = told[template.name], -1, 0
    for burst in replayed.bursts:
        step += burst.steps
        if not burst.steps or step >= template.steps:
            continue
        logits = np.asarray(tiny_model().logits(jnp.asarray(burst.state.hidden)))
        for row, path in enumerate(paths_down(template, replayed.tokens[step])):
            exact = path_logprobs(replayed.text(step) + path)[-1]
            found = logits[row] - jax.nn.logsumexp(logits[row])
            np.testing.assert_allclose(found, exact, atol=1e-3, rtol=1e-4)
        looked_at += 1
    assert looked_at == 4


def test_the_last_kept_token_is_as_after_a_prefill(told):
    """Hidden state of the last kept token, and of a prompt that is the whole text."""
    replayed = told[RANKED.name]
    last = [burst for burst in replayed.bursts if burst.steps][-2]
    assert RANKED.tips[-1] == RANKED.num_tokens - 2 and last.steps == 4
    engine = WatchedEngine(CAPACITY)
    text = replayed.text(RANKED.steps)
    engine.generate(text, BestOfN(1), Sampling(temperature=0.0, max_new_tokens=1))
    expected = engine.runner.prefills[-1].hidden[0]
    found = last.state.hidden[RANKED.tips[-1]]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@each_template
def test_pages_are_those_of_prompt_trunk_and_drafts(told, template):
    strategy, replayed, step = DraftReplay(template), told[template.name], -1
    for burst in replayed.bursts:
        step += burst.steps
        if burst.steps and step < template.steps:
            trunk = sum(ACCEPTS[:step]) + template.num_tokens
            pages = CAPACITY.pages_for(PROMPT) + CAPACITY.pages_for(trunk)
            tree = burst.state.tree
            assert tree.num_free_pages == CAPACITY.pages - pages
            assert tree.num_free_nodes == CAPACITY.nodes - strategy.nodes
    pages, nodes = strategy.pages_needed(PAGE_SIZE), strategy.nodes
    enough = TightEngine(CAPACITY, pages=pages, nodes=nodes)
    assert replay(enough, template).nodes[1].tokens == replayed.branch
    for no_pages, no_nodes in [(1, 0), (0, 1)]:
        less = TightEngine(CAPACITY, pages=pages - no_pages, nodes=nodes - no_nodes)
        tree = replay(less, template)
        assert tree.notice is not None and "ran out" in tree.notice
        kept = [token for node in tree.nodes[1:] for token in node.tokens]
        assert tuple(kept) == replayed.branch[: len(kept)] != replayed.branch


@each_template
def test_greedy_verification_is_counted(told, template):
    replayed, expected = told[template.name], 0
    for step, tokens in enumerate(replayed.tokens):
        says = [
            int(np.argmax(path_logprobs(replayed.text(step) + path)[-1]))
            for path in paths_down(template, tokens)
        ]
        expected += longest_agreed(template, tokens, says)
    assert int(replayed.bursts[-1].planner.agreed) == expected
    assert expected > 0 or template is not STAR


@pytest.mark.parametrize("seed", range(20))
def test_agreement_is_counted_along_paths(seed):
    """With three tokens in all, so that drafts are often right."""
    planner = DraftReplay(RANKED).planner
    random = np.random.default_rng(seed)
    drafted, says = random.integers(0, 3, (2, CAPACITY.rows)).astype(np.int32)
    state = dataclasses.replace(planner.init(CAPACITY), drafted=jnp.asarray(drafted))
    state = dataclasses.replace(state, step=jnp.int32(1), agreed=jnp.int32(7))
    after, plan = planner.plan(state, view(jnp.asarray(says)))
    assert after.agreed - 7 == longest_agreed(RANKED, drafted, says)
    assert int(plan.accept[0]) == 1 + RANKED.tips[0]


def view(token) -> View:
    """Rows at nodes 1, 2, 3, ... that say `token`."""
    rows = jnp.arange(CAPACITY.rows)
    zeros = jnp.zeros_like(rows)
    return View(
        tree=Tree.create(CAPACITY.nodes, CAPACITY.pages, PAGE_SIZE),
        table=None,  # type: ignore[arg-type]
        node=1 + rows,
        request=zeros,
        number=zeros,
        generated=1 + zeros,
        logits=jnp.zeros((CAPACITY.rows, 3)),
        token=token,
        logprob=jnp.zeros(CAPACITY.rows),
        finish=zeros,
        roots=jnp.zeros(1, jnp.int32),
    )


def test_draft_trees_of_one_depth_share_a_compilation(told):
    engine = ReplayEngine(CAPACITY)
    before = num_traces(run_decode)
    for template in TEMPLATES:
        assert replay(engine, template).nodes[1].tokens == told[template.name].branch
    assert num_traces(run_decode) == before
    assert len({DraftReplay(template).planner for template in TEMPLATES}) == 1
    real, star = speculative(64), speculative(64, "star")
    assert DraftReplay(real).planner == DraftReplay(star).planner


def test_prompts_take_turns(told):
    engine = ReplayEngine(CAPACITY)
    strategy = DraftReplay(RANKED)
    prompts = [prompt(), prompt(33), prompt()]
    trees = engine.generate(prompts, strategy, strategy.sampling)
    texts = [tree.nodes[1].tokens for tree in trees]
    assert texts[0] == texts[2] == told[RANKED.name].branch != texts[1]
    assert len(texts[1]) == sum(ACCEPTS)
    planner_state = engine.runner.planner_state(strategy.planner).own
    assert planner_state.agreed == told[RANKED.name].bursts[-1].planner.agreed


def test_capacities_are_those_of_the_template():
    assert capacity(speculative(32), 64) == Capacity(
        requests=1, rows=32, nodes=48, pages=96, page_size=64, chunk=256
    )
    assert DraftReplay(speculative(256)).pages_needed(64) == 16 + 82
    assert capacity(speculative(256), 64).pages == 384


def test_a_replay_refuses_several_requests_at_a_time():
    size = dataclasses.replace(CAPACITY, requests=2)
    with pytest.raises(CapacityError, match="1 request at a time, the engine 2"):
        replay(ReplayEngine(size), REAL)


def test_the_texts_fit_the_dense_model():
    assert PROMPT + sum(ACCEPTS) + max(ACCEPTS) < CONFIG.context_length
