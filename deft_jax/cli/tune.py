"""`deft-jax tune`: measures the kernels' sizes and keeps the fastest in a table."""

import argparse
import dataclasses
import datetime
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from deft_jax.attention.device import HOPPER, compute_capability, gpu_kind
from deft_jax.attention.hopper import unsupported
from deft_jax.attention.spec import HEADS
from deft_jax.attention.tuned_sizes import (
    Entry,
    Key,
    Table,
    default_path,
    read_table,
    rows_bucket,
    write_table,
)
from deft_jax.attention.tuning.problem import Problem, make_problem, tree_levels
from deft_jax.attention.tuning.search import (
    Measurement,
    best,
    candidates,
    measure,
    problem_spec,
    search,
    wall_seconds,
)
from deft_jax.errors import DeftError
from deft_jax.results.terminal_text import head, one_line

_FAILURE_WIDTH = 60


def tune(options: argparse.Namespace) -> int:
    """Run the command and return its exit code.

    The table is written after each number of queries: what Ctrl-C leaves is kept.

    Raises:
        DeftError: the device is none that the kernels are tuned for, or an option or
            the table that is to be extended cannot be used.
        OSError: the table cannot be written.
    """
    kind = _require_hopper()
    _check_shape(options)
    _check_buckets(options)
    path = Path(options.output) if options.output else default_path(kind)
    table = _open_table(path, kind)
    print(f"{options.model_shape}, {options.dtype}, {kind}; times in us")
    for num_queries in options.queries:
        problem = _problem(options, num_queries)
        key, won = tune_one(problem, quick=options.quick)
        if won is None:
            continue
        entry = Entry(won.config, us=round(won.mean_us, 3))
        table = _extended(table, key, entry)
        write_table(path, table)
        print(f"rows {key.rows}: {_sizes(won)}; kept in {path}", flush=True)
    return 0


def tune_one(
    problem: Problem, *, quick: bool = False, measure=measure, timer=wall_seconds
) -> tuple[Key, Measurement | None]:
    """Measure every config on a problem, print a line for each, return the best.

    Args:
        problem: to measure on.
        quick: few configs and few repeats.
        measure: as `tuning_search.measure`.
        timer: as `tuning_search.wall_seconds`.

    Returns:
        The key of the problem's kernels and the best config, None if all failed.
    """
    spec = problem_spec(problem)
    key = Key.of(spec)
    timer = functools.partial(timer, repeats=2 if quick else 5)
    columns = ["rows", "unit", "block", "stages", *problem.trees, "mean", "error"]
    print("  ".join(f"{name:>8}" for name in columns))
    run = functools.partial(measure, problem, timer=timer)
    measured = []
    for one in search(candidates(spec, quick=quick), run):
        measured.append(one)
        print("  ".join(f"{cell:>8}" for cell in _cells(key, one)), flush=True)
    won = best(measured)
    if won is None:
        print(f"rows {key.rows}: no sizes can be used; the table stays as it is")
    return key, won


def _require_hopper() -> str:
    capability, kind = compute_capability(), gpu_kind()
    if kind is not None and capability == HOPPER:
        return kind
    found = jax.default_backend() if kind is None else kind
    if capability is not None:
        found += f" of compute capability {capability[0]}.{capability[1]}"
    raise DeftError(
        f"tune needs an NVIDIA GPU of compute capability 9.0, got {found}; other"
        " devices use implementation 'xla', which has nothing to tune"
    )


def _check_shape(options: argparse.Namespace) -> None:
    heads, most = HEADS[options.model_shape], max(options.queries)
    q_shape = most, heads.num_q, heads.head_dim
    page_shape = 1, heads.num_kv, options.page_size, heads.head_dim
    shapes = q_shape, page_shape
    q, k = jax.eval_shape(lambda: [jnp.zeros(s, options.dtype) for s in shapes])
    if reason := unsupported(q, k):
        raise DeftError(f"the kernels do not take these arrays: {reason}")


def _check_buckets(options: argparse.Namespace) -> None:
    """One number of queries per entry: a later one must not replace an earlier."""
    owner: dict[int, int] = {}
    for num_queries in options.queries:
        rows = rows_bucket(num_queries * HEADS[options.model_shape].group)
        if rows in owner:
            raise DeftError(
                f"--queries {owner[rows]} and {num_queries} share the table's entry of"
                f" {rows} rows; give one of them"
            )
        owner[rows] = num_queries


def _open_table(path: Path, kind: str) -> Table:
    """The table to extend; errors of the file show before anything is measured."""
    table = read_table(path)
    if table is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Table(kind)
    if table.device_kind != kind:
        raise DeftError(
            f"{path}: the table is for {table.device_kind}, got {kind}; choose another"
            " --output"
        )
    return table


def _extended(table: Table, key: Key, entry: Entry) -> Table:
    return dataclasses.replace(
        table,
        jax=jax.__version__,
        date=datetime.date.today().isoformat(),
        entries={**table.entries, key: entry},
    )


def _problem(options: argparse.Namespace, num_queries: int) -> Problem:
    levels = tree_levels(num_queries)
    if options.quick:
        levels = {"branches": levels["branches"]}
    return make_problem(
        HEADS[options.model_shape],
        levels,
        page_size=options.page_size,
        dtype=options.dtype,
        window=options.window,
    )


def _cells(key: Key, measured: Measurement) -> Iterator[str]:
    config = measured.config
    sizes: Sequence[int] = dataclasses.astuple(config)
    yield from map(str, (key.rows, *sizes))
    if measured.failure is not None:
        yield head(one_line(measured.failure), _FAILURE_WIDTH)
        return
    yield from (f"{us:.1f}" for us in (*measured.us.values(), measured.mean_us))
    yield f"{measured.error:.1e}"


def _sizes(measured: Measurement) -> str:
    config = measured.config
    return (
        f"unit_tokens {config.unit_tokens}, block_tokens {config.block_tokens},"
        f" stages {config.stages}"
    )
