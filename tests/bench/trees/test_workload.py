"""The workloads of the decode benchmark: facts and bytes against numbers by hand."""

import dataclasses

import numpy as np
import pytest

from deft_jax.accounting.methods import METHODS, AttentionSizes, KernelSizes
from deft_jax.bench.trees.draft_replay import DraftReplay
from deft_jax.bench.trees.draft_templates import DraftTemplate
from deft_jax.bench.trees.templates import TreeTemplate, reasoning
from deft_jax.bench.trees.tree_replay import TreeReplay
from deft_jax.bench.trees.workload import (
    Workload,
    few_shot_workloads,
    reasoning_workloads,
    speculative_workloads,
)

SIZES = AttentionSizes(
    num_q_heads=4, num_kv_heads=2, head_dim=8, itemsize=2, num_layers=3
)
TOKEN_BYTES = 3 * 2 * 2 * 8 * 2
ROW_BYTES = 3 * 8 * 2
KERNEL = KernelSizes(chunk_tokens=2)

FEW_SHOT = few_shot_workloads([5], [2], 3)[0]
# Steps with 2, 2, 3 and 1 growing branches; the first two nodes below the prompt are
# of 2 and 3 tokens, the first has children of 1 and 2.
SEARCH = Workload(
    "reasoning", {}, TreeTemplate.create("s", (-1, 0, 0, 1, 1), (4, 2, 3, 1, 2))
)
# The trunk's token, two drafts below it, and one below the first of these.
DRAFTS = Workload(
    "speculative",
    {},
    DraftTemplate.create("d", 10, [[0], [1], [0, 0]], accept_lengths=[2, 1]),
)
PATHS = {"few-shot": 2 * (6 + 7 + 8), "reasoning": 51, "speculative": 48 + 56}
UNIQUE = {"few-shot": 7 + 9 + 11, "reasoning": 6 + 8 + 11 + 8, "speculative": 14 + 16}
QUERIES = {"few-shot": 6, "reasoning": 8, "speculative": 8}
ALL = pytest.mark.parametrize(
    "workload", [FEW_SHOT, SEARCH, DRAFTS], ids=lambda workload: workload.kind
)


@ALL
def test_kv_is_read_by_path_or_once(workload: Workload):
    paths, unique = PATHS[workload.kind], UNIQUE[workload.kind]
    expected = dict.fromkeys(METHODS, unique)
    expected |= {"flash_decoding": paths, "radix": paths}
    read = {m: workload.count_io(m, SIZES, KERNEL).kv_bytes for m in METHODS}
    assert read == {method: n * TOKEN_BYTES for method, n in expected.items()}


@ALL
def test_templates_count_as_the_io_account(workload: Workload):
    assert workload.template.path_tokens.sum() == PATHS[workload.kind]
    assert workload.template.live_tokens.sum() == UNIQUE[workload.kind]
    assert workload.template.live_width.sum() == QUERIES[workload.kind]


@ALL
def test_queries_are_read_and_outputs_written(workload: Workload):
    rows = 2 * QUERIES[workload.kind] * 4
    moved = workload.count_io("radix", SIZES, KERNEL).query_output_bytes
    assert moved == rows * ROW_BYTES


def test_masks_and_logits_of_dense_attention():
    # Two queries times the tree's tokens; 16 bytes a logit and head.
    logits = 2 * UNIQUE["few-shot"]
    account = FEW_SHOT.count_io("medusa", SIZES, KERNEL)
    assert account.mask_bytes == 3 * logits * 2
    assert account.intermediate_bytes == 3 * logits * 4 * 16


def test_partial_results_are_written_and_read():
    # Each query has a partial of the prompt and one of its own node: 3 steps, 2
    # queries, 4 heads, 2 partials of an output and a log-sum-exp.
    partials = 3 * 2 * 4 * 2
    node = FEW_SHOT.count_io("deft_node", SIZES, KERNEL).partial_bytes
    assert node == 2 * 3 * partials * (8 * 2 + 4)
    # Chunks of 2 tokens: 3 of the prompt, then 1, 1 and 2 of a branch.
    chunked = FEW_SHOT.count_io("deft_node_chunk", SIZES, KERNEL).partial_bytes
    assert chunked == 2 * 3 * 2 * 4 * (4 + 4 + 5) * (8 * 2 + 4)


def test_output_tokens():
    assert FEW_SHOT.output_tokens == 6
    assert SEARCH.output_tokens == 8, "pruned branches count"
    assert DRAFTS.output_tokens == 3, "rejected drafts do not"


def test_longest_paths():
    assert FEW_SHOT.longest_path == 8
    assert SEARCH.longest_path == 8
    assert DRAFTS.longest_path == 10 + 3 + 2
    peer = TreeTemplate.create("p", (-1, 0), (3, 20))
    assert dataclasses.replace(SEARCH, peers=(peer,)).longest_path == 23


def test_what_the_engine_runs():
    assert isinstance(FEW_SHOT.strategy, TreeReplay)
    assert isinstance(DRAFTS.strategy, DraftReplay)
    assert DRAFTS.capacity(8).rows == 4
    assert SEARCH.capacity(8).rows == 3


def test_trees_of_a_task_share_a_capacity():
    workloads = reasoning_workloads(["sorting", "docmerge"], [0, 3], shorten=50)
    assert [w.parameters["task"] for w in workloads] == ["sorting"] * 2 + [
        "docmerge"
    ] * 2
    assert [w.parameters["tree"] for w in workloads] == [0, 3, 0, 3]
    first, second, third, _ = (w.capacity(16) for w in workloads)
    assert first == second != third
    whole = reasoning("sorting")[3]
    assert workloads[1].parameters["prompt_tokens"] == whole.prompt_tokens // 50
    assert workloads[1].template.parents == whole.parents


def test_every_number_of_drafts_comes_with_every_tree():
    workloads = speculative_workloads([32, 64], ["real", "star"], 1100)
    parameters = [(w.parameters["drafts"], w.parameters["tree"]) for w in workloads]
    assert parameters == [(32, "real"), (32, "star"), (64, "real"), (64, "star")]
    assert {w.output_tokens for w in workloads} == {1100 - 1016}


def test_the_real_workloads_are_the_papers_size():
    [few_shot] = few_shot_workloads([4000], [50], 399)
    assert few_shot.output_tokens == 50 * 399
    [drafts] = speculative_workloads([64], ["real"], 6000)
    assert (drafts.template.steps, drafts.output_tokens) == (1507, 4984)
    read = drafts.count_io("radix", SIZES, KERNEL).kv_bytes
    assert read == int(np.sum(drafts.template.path_tokens)) * TOKEN_BYTES


def test_names_are_words():
    assert FEW_SHOT.name == "few-shot: 5 prompt tokens, width 2, 3 steps"
