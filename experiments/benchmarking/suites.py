"""Runs the benchmark's suites: workers in turn, a record of what they counted, tables."""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from experiments.benchmarking import report
from experiments.benchmarking.cases import MATMUL, SUITES, VARIANTS, Job
from experiments.benchmarking.report import Entry, Measured
from experiments.benchmarking.worker import Worker, WorkerError
from experiments.settings import RunConfig
from sdtt_jax.config import to_mapping

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
            setup = worker.prepare(lambda phase, head=head: log(f"{head}: {phase}"))  # type: ignore[misc]
        except WorkerError as death:
            measured[job.variant].error = str(death)
            log(f"{head} died: {death}")
            continue
        measured[job.variant].setup = setup
        yield job.variant, worker


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and how often.

    Attributes:
      suites: some of `SUITES`.
      batch_size: sequences per training step or generation.
      num_steps: sampling steps of each row of the suite `sample`.
      repeats: timed repetitions.
      interleave: let the variants take turns.
    """

    suites: Sequence[str]
    batch_size: int
    num_steps: Sequence[int]
    repeats: int
    interleave: bool

    def rows(self) -> Iterator[tuple[str, str, int]]:
        """Title, suite and sampling steps of each row."""
        for suite in SUITES:
            if suite in self.suites:
                for steps in self.num_steps if suite == "sample" else [0]:
                    yield f"{suite}, {steps} steps" if steps else suite, suite, steps


def benchmark(config: RunConfig, plan: Plan, log: Log, save: Callable[[Entry], None]) -> Entry:
    """The whole record.

    Args:
      config: of a run, whose networks and data are taken.
      plan: what is measured.
      log: called with each line of progress.
      save: called with the record after every row, so that a stop loses little.
    """
    plain, vocab_size = to_mapping(config), config.vocab_size
    record: Entry = {
        "jax": importlib.metadata.version("jax"),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "config": plain,
        "vocab_entries": vocab_size + 1,
        "batch_size": plan.batch_size,
        "repeats": plan.repeats,
        "interleaved": plan.interleave,
    }
    for title, suite, steps in plan.rows():
        variants = VARIANTS if suite == "data" else (MATMUL, *VARIANTS)
        jobs = [Job(suite, v, plain, vocab_size, plan.batch_size, steps) for v in variants]
        measured = measure(title, jobs, plan.repeats, log, interleave=plan.interleave)
        if suite == "data":
            record["data"] = report.data_entry(config, measured)
        elif suite == "sample":
            row = report.entry(config, jobs[0], measured)
            record["sample"] = [*record.get("sample", []), row]
        else:
            record[suite] = report.entry(config, jobs[0], measured)
        if "data" in record and "train" in record:
            share = report.loading_share(record["data"], record["train"], plan.batch_size)
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
