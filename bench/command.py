"""`deft-jax bench`: runs workloads with several methods and writes a report."""

import argparse
import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from deft_jax.cli.bench_arguments import settle
from deft_jax.cli.device import default_dtype
from deft_jax.engine.compilation_cache import enable_compilation_cache
from deft_jax.errors import DeftError
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.families.llama import Llama
from deft_jax.models.load import load_model

from .decode.bench_engine import IdsOnly
from .decode.decode_run import run
from .decode.setting import Setting
from .decode.step_ceilings import measure_rates
from .extras import require
from .gpu.timing import record_kernels
from .machine import machine_facts
from .report.report import print_report, write_report
from .trees.tree_text import parse_levels, parse_search
from .trees.workload import (
    Workload,
    few_shot_workloads,
    reasoning_workloads,
    speculative_workloads,
    tree_workloads,
)


def bench(options: argparse.Namespace) -> int:
    """Run the command and return its exit code: 1 if a run failed.

    Raises:
        DeftError: an option cannot be used here, or a package is missing.
        OSError: the report cannot be written.
    """
    require("matplotlib")
    options = settle(options)
    if options.workload == "attention":
        from .attention.command import bench_attention

        return bench_attention(options)
    if options.workload == "cpu":
        from .cpu.command import bench_cpu

        return bench_cpu(options)
    return bench_decoding(options)


def bench_decoding(options: argparse.Namespace) -> int:
    """Decode every tree with every method; return 1 if a run failed.

    The JSON is written after each run: what Ctrl-C leaves is kept.
    """
    workloads = choose_workloads(options)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    keep_programs()
    setting = make_setting(options)
    report = card(options, setting)
    for workload, profile in zip(workloads, choose_profiled(workloads), strict=True):
        for method in options.methods:
            row = run(workload, method, setting, profile=profile)
            report["runs"].append(row)
            text = json.dumps(report, indent=1)
            (folder / "report.json").write_text(text + "\n")
            print(progress(workload, row), flush=True)
    for path in write_report(report, folder):
        print(path)
    print_report(report)
    return int(any("error" in row for row in report["runs"]))


def choose_workloads(options: argparse.Namespace) -> list[Workload]:
    """Return the workloads that the options ask for.

    Raises:
        DeftError: a tree cannot be made of what was given.
    """
    if options.workload == "few-shot":
        return few_shot_workloads(options.prompt_tokens, options.widths, options.steps)
    if options.workload == "reasoning":
        return reasoning_workloads(options.tasks, options.trees, options.shorten)
    if options.workload == "speculative":
        return speculative_workloads(
            options.drafts, options.shapes, options.max_tokens, options.prompt_tokens
        )
    trees = [parse_levels(text) for text in options.levels]
    trees += [parse_search(text) for text in options.searches]
    if not trees:
        raise DeftError("give a tree: --levels, --searches or --quick")
    return tree_workloads(trees)


def choose_profiled(workloads: list[Workload]) -> list[bool]:
    """Say for each workload whether it is profiled: the first tree of a task is."""
    seen: set[Any] = set()
    wanted = []
    for workload in workloads:
        task = workload.parameters.get("task")
        wanted.append(task is None or task not in seen)
        seen.add(task)
    return wanted


def keep_programs() -> None:
    """Keep compiled programs between runs, and those with their scopes on a GPU.

    Programs that differ in scopes alone are one to JAX's cache, which would give kernel
    times to the scopes of an older program.
    """
    enable_compilation_cache()
    if jax.default_backend() == "gpu":
        jax.config.update("jax_compilation_cache_include_metadata_in_key", True)


def make_setting(options: argparse.Namespace) -> Setting:
    """Return the model and the device's rates."""
    dtype = jnp.dtype(options.dtype or default_dtype())
    tokenizer: Any = IdsOnly()
    if options.shape:
        model = Llama.random(SHAPES[options.shape], seed=0, dtype=dtype)
    else:
        model, tokenizer = load_model(options.model, dtype=dtype)
    return Setting(
        model=model,
        tokenizer=tokenizer,
        rates=measure_rates(dtype),
        implementation=options.implementation,
        page_size=options.page_size,
        record=record_kernels if jax.default_backend() == "gpu" else None,
    )


def card(options: argparse.Namespace, setting: Setting) -> dict:
    """Return the report before its first run."""
    return {
        **machine_facts(),
        "date": datetime.date.today().isoformat(),
        **dataclasses.asdict(setting.rates),
        "card": {
            "shape": options.shape or options.model,
            "dtype": setting.model.dtype.name,
            "weights": "random" if options.shape else "checkpoint",
            "page_size": setting.page_size,
            "decoding": "greedy",
        },
        "runs": [],
    }


def progress(workload: Workload, row: dict) -> str:
    """Return one line about a run that is done."""
    begin = f"{workload.name}, {row['method']}"
    if "error" in row:
        return f"{begin}: failed: {row['error']}"
    parts = (
        f"{name.removesuffix('_ms')} {row[name]:.2f}"
        for name in ("attention_ms", "grouping_ms", "tree_ops_ms", "sampling_ms")
        if row[name] is not None
    )
    times = f"step {row['step_ms']:.2f} ms", f"roofline {row['roofline_ms']:.2f} ms"
    return f"{begin}: {', '.join([*times, *parts])}"
