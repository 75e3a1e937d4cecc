"""Runs the benchmark's suites: workers in turn, a record of what they counted, tables."""

import contextlib
import functools
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from experiments.benchmarking import report
from experiments.benchmarking.cases import MATMUL, SUITES, VARIANTS, Job
from experiments.benchmarking.report import Entry, Measured
from experiments.benchmarking.worker import Worker, WorkerError
from experiments.settings import RunConfig
from sdtt_jax.config import to_mapping
from sdtt_jax.paths import write_json

Log = Callable[[str], None]


def measure(
    title: str, jobs: Sequence[Job], repeats: int, log: Log, *, interleave: bool = True
) -> dict[str, Measured]:
    """Runs the jobs, each in its own process, `repeats` times.

    Args:
      title: what progress lines begin with.
      jobs: one per variant.
      repeats: repetitions after the one that warms up.
      log: called with each line of progress.
      interleave: keep all processes, and let them run in turn; each round reverses the order.

    Returns:
      What each variant has shown; one that died says so, and the others went on.
    """
    measured = {job.variant: Measured() for job in jobs}
    for group in [list(jobs)] if interleave else [[job] for job in jobs]:
        with contextlib.ExitStack() as stack:
            workers = dict(_prepared(title, group, measured, stack, log))
            for number in range(repeats):
                order = list(workers) if number % 2 == 0 else list(reversed(workers))
                for variant in order:
                    try:
                        measured[variant].runs.append(workers[variant].run())
                    except WorkerError as death:
                        measured[variant].error = str(death)
                        log(f"{title}: {variant} died: {death}")
                        del workers[variant]
                if shown := [v for v in VARIANTS if v in workers]:
                    times = (f"{v} {measured[v].runs[-1]['seconds']:.3g} s" for v in shown)
                    log(f"{title}: {number + 1} of {repeats}: {', '.join(times)}")
    return measured


def _prepared(
    title: str,
    jobs: Sequence[Job],
    measured: dict[str, Measured],
    stack: contextlib.ExitStack,
    log: Log,
) -> Iterator[tuple[str, Worker]]:
    """Starts and warms up one after the other, so that none is compiled while another computes."""
    for job in jobs:
        worker = stack.enter_context(Worker(job))
        head = f"{title}: {job.variant}"
        try:
            facts = worker.prepare(lambda phase, head=head: log(f"{head}: {phase}"))  # type: ignore[misc]
        except WorkerError as death:
            measured[job.variant].error = str(death)
            log(f"{head} died: {death}")
            continue
        measured[job.variant].facts = facts
        yield job.variant, worker


def benchmark(
    config: RunConfig,
    suites: Sequence[str],
    batch_size: int,
    num_steps: Sequence[int],
    repeats: int,
    log: Log,
    save: Callable[[Entry], None],
    *,
    interleave: bool = True,
) -> Entry:
    """The whole record; `save` gets it after every row, so that a stop loses little."""
    vocab_size = config.vocab_size
    record: Entry = {
        "jax": importlib.metadata.version("jax"),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "config": to_mapping(config),
        "vocab_entries": vocab_size + 1,
        "batch_size": batch_size,
        "repeats": repeats,
        "interleaved": interleave,
    }

    def jobs(suite: str, steps: int = 0) -> list[Job]:
        variants = VARIANTS if suite == "data" else (MATMUL, *VARIANTS)
        plain = to_mapping(config)
        return [Job(suite, v, plain, vocab_size, batch_size, steps) for v in variants]

    for suite in SUITES:
        if suite not in suites:
            continue
        for steps in num_steps if suite == "sample" else [0]:
            title = f"{suite}, {steps} steps" if suite == "sample" else suite
            row_jobs = jobs(suite, steps)
            found = measure(title, row_jobs, repeats, log, interleave=interleave)
            if suite == "data":
                record["data"] = report.data_entry(config, found)
            elif suite == "sample":
                row = report.entry(config, row_jobs[0], found)
                record["sample"] = [*record.get("sample", []), row]
            else:
                record[suite] = report.entry(config, row_jobs[0], found)
            if "data" in record and "train" in record:
                share = report.loading_share(record["data"], record["train"], batch_size)
                record["data"]["share_of_train_step"] = share
            save(record)
    return record


def show(record: Entry, console: Console) -> None:
    """Prints the tables."""
    rows: dict[str, Entry] = {name: record[name] for name in ("train", "teacher") if name in record}
    rows |= {f"sample, {row['num_steps']} steps": row for row in record.get("sample", [])}
    if "judge" in record:
        rows["judge"] = record["judge"]
    if rows:
        console.print(report.computing_table(rows))
        console.print(report.memory_table(rows))
        for line in report.roofline_lines(rows):
            console.print(line, highlight=False, soft_wrap=True)
    if "data" in record:
        console.print(report.data_table(record["data"]))
        share = record["data"].get("share_of_train_step")
        if share is not None:
            console.print(
                f"Loading takes {100 * share:.2g} % of a lean training step.", highlight=False
            )
        rows["data"] = record["data"]
    for line in report.deaths(rows):
        console.print(line, style="bold", highlight=False, soft_wrap=True)


def saver(path: Path | None) -> Callable[[Entry], None]:
    """Writes the record to `path`, whole or not at all."""
    if path is None:
        return lambda _: None
    return functools.partial(write_json, path)
