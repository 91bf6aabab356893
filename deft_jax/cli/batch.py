"""`deft-jax generate` for JSON lines: many requests, each with its own settings."""

import argparse
import dataclasses
import json
import queue
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, TextIO

import deft_jax
from deft_jax.capacity import DEFAULT_PAGE_SIZE, DEFAULT_ROWS, bucket
from deft_jax.cli.interrupt import Interrupt, exit_code
from deft_jax.cli.opening import limit_context, open_chosen
from deft_jax.cli.outcome_file import text_of
from deft_jax.cli.prompts import read_tools
from deft_jax.cli.request_lines import Job, Line, make_job, read_lines
from deft_jax.cli.view import stopping, write_progress
from deft_jax.errors import DeftError
from deft_jax.results.counters import json_ready

SOME_FAILED, ALL_FAILED = 1, 2
"""Exit codes if some lines were wrong or some numbers not finite, or if all were."""

_SECONDS_BETWEEN_LINES = 10.0


def generate_lines(options: argparse.Namespace) -> int:
    """Run every line together, write each as it ends, and return the exit code.

    Raises:
        DeftError: an option or the model cannot be used.
        OSError: a file cannot be read or written.
    """
    lines, tools = read_lines(options), read_tools(options)
    with ExitStack() as stack:
        file: TextIO = sys.stdout
        if options.output is not None:
            file = stack.enter_context(
                open(options.output, "w", encoding="utf-8", errors="backslashreplace")
            )
        return _Batch(options, file).run(lines, tools)


class _Batch:
    """Runs jobs and writes what becomes of them."""

    def __init__(self, options: argparse.Namespace, file: TextIO):
        self._options, self._file = options, file
        self._num_failed = 0

    def run(self, lines: Sequence[Line], tools: list[dict[str, Any]] | None) -> int:
        """Run what can be run; return the exit code."""
        good = [line for line in lines if line.error is None]
        for line in lines:
            if line.error is not None:
                self._fail(line)
        if not good:
            return ALL_FAILED
        with Interrupt() as interrupt:
            opened = open_chosen(self._options)
            opened = limit_context(opened, self._options.max_context)
            jobs = self._make_jobs(good, tools, opened)
            if not jobs:
                return ALL_FAILED
            engine = self._create_engine(opened, self._choose_capacity(jobs, opened))
            # Programs are compiled, or read from the cache, while weights are loaded.
            widest = max(jobs, key=lambda job: job.strategy.rows)
            prompts = [job.prompt for job in jobs]
            engine.compile_ahead(prompts, widest.strategy, widest.sampling)
            engine.model = opened.load(None)
            self._decode(engine, jobs, interrupt)
        if interrupt.requested is not None:
            return exit_code(interrupt.requested)
        if self._num_failed == len(lines):
            return ALL_FAILED
        return SOME_FAILED if self._num_failed else 0

    def _make_jobs(
        self, lines: Sequence[Line], tools: list[dict[str, Any]] | None, opened: Any
    ) -> list[Job]:
        """Return what can be run, checked against the model and the device alone."""
        from deft_jax.engine.prompts import check_token_ids

        engine, config, jobs = self._create_engine(opened), opened.config, []
        for line in lines:
            try:
                job = make_job(line, self._options, tools, opened.tokenizer)
                check_token_ids(
                    line.number, job.prompt, config.vocab_size, config.context_length
                )
                job.sampling.check(config.vocab_size)
                engine.runner.check(self._capacity([job], config.context_length))
            except DeftError as error:
                self._fail(line.failed(error))
            else:
                jobs.append(job)
        return jobs

    def _create_engine(
        self, opened: Any, capacity: "deft_jax.Capacity | None" = None
    ) -> "deft_jax.Engine":
        """Return an engine that has no weights so far."""
        return deft_jax.Engine(
            opened.outline(),
            opened.tokenizer,
            capacity=capacity,
            implementation=self._options.implementation,
        )

    def _choose_capacity(self, jobs: Sequence[Job], opened: Any) -> "deft_jax.Capacity":
        """Return the capacity for all jobs; where memory is short they take turns."""
        runner, max_rows = self._create_engine(opened).runner, DEFAULT_ROWS
        most = max(job.strategy.rows for job in jobs)
        while True:
            capacity = self._capacity(jobs, opened.config.context_length, max_rows)
            if max_rows < 2 * most or runner.fits(capacity):
                return capacity
            max_rows //= 2

    def _capacity(
        self, jobs: Sequence[Job], context: int, max_rows: int = DEFAULT_ROWS
    ) -> "deft_jax.Capacity":
        """Return what jobs need that decode in so many rows at most.

        The prefix cache takes a node and a page more of each.
        """
        from deft_jax.strategies.traits import footprint_of

        page_size = self._options.page_size or DEFAULT_PAGE_SIZE
        limits = [
            min(job.sampling.max_new_tokens, context - len(job.prompt)) for job in jobs
        ]
        pages = [
            footprint_of(job.strategy).pages(limit, page_size)
            for job, limit in zip(jobs, limits, strict=True)
        ]
        rows = max(job.strategy.rows for job in jobs)
        needed = deft_jax.Capacity.for_requests(
            [len(job.prompt) for job in jobs],
            max(limits),
            rows,
            max(job.strategy.nodes for job in jobs),
            page_size,
            max_rows,
            max(pages),
        )
        cached = min(len(jobs), max(1, max_rows // rows))
        return dataclasses.replace(
            needed,
            nodes=bucket(needed.nodes + cached),
            pages=bucket(needed.pages + cached),
        )

    def _decode(
        self, engine: "deft_jax.Engine", jobs: Sequence[Job], interrupt: Interrupt
    ) -> None:
        """Run the jobs together, and write each as it ends."""
        ended: queue.SimpleQueue[tuple[Job, Any]] = queue.SimpleQueue()
        handles: list[Any] = []

        def stop(number: int) -> None:
            write_progress(stopping(number))
            for handle in list(handles):
                handle.cancel()

        with interrupt.softly(stop):
            for job in jobs:
                handle = engine.submit(
                    job.prompt, job.strategy, job.sampling, priority=job.priority
                )
                handles.append(handle)
                if interrupt.is_requested():
                    handle.cancel()
                handle.add_done_callback(lambda one, job=job: ended.put((job, one)))
            next_line_at, num_done = time.monotonic() + _SECONDS_BETWEEN_LINES, 0
            while num_done < len(jobs):
                try:
                    job, handle = ended.get(
                        timeout=max(0.0, next_line_at - time.monotonic())
                    )
                except queue.Empty:
                    next_line_at += _SECONDS_BETWEEN_LINES
                    write_progress(f"{num_done} of {len(jobs)} requests are done")
                else:
                    num_done += 1
                    self._write_result(job, handle)

    def _write_result(self, job: Job, handle: Any) -> None:
        """Write what has become of a job; an error ends it alone."""
        try:
            tree: deft_jax.GenerationTree = handle.result()
        except DeftError as error:
            self._fail(job.line.failed(error))
            return
        if any(leaf.finish_reason == "not-finite" for leaf in tree.leaves()):
            self._num_failed += 1
        if self._options.json:
            document = tree.to_dict()
            del document["request"]  # Each is the only one of its call.
            self._write_object(job.line, document)
        else:
            text = text_of([tree], [job.shown], self._options.full)
            self._write(f"[{job.line.id}]\n{text}")

    def _fail(self, line: Line) -> None:
        """Tell what is wrong with a line, where its outcome would stand as well."""
        self._num_failed += 1
        write_progress(f"error: line {line.number}: {line.error}")
        if self._options.json:
            self._write_object(line, {"error": line.error})

    def _write_object(self, line: Line, fields: dict[str, Any]) -> None:
        document = json_ready({"id": line.id, "line": line.number, **fields})
        self._write(json.dumps(document, allow_nan=False))

    def _write(self, text: str) -> None:
        print(text, file=self._file, flush=True)
