"""Runs the benchmark's suites: workers in turn, the record of their measurements, and tables."""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console

from experiments.benchmarking import cases, report
from experiments.benchmarking.report import Entry, Measured
from experiments.benchmarking.worker import Here, Worker, WorkerError
from experiments.cli.fields import require_used
from experiments.settings import RunConfig
from sdtt_jax.config import at_least, changed, choose, each, require, to_mapping, whole
from sdtt_jax.diffusion.decoders.serving import HELPERS
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.evaluation.settings import setting
from sdtt_jax.networks.config import COMPUTE_DTYPES

# Suites in which a student that sees noise can be measured in addition to one that does not.
HAS_COUPLED = ("train", "sample")


def measure(
    title: str,
    jobs: Sequence[cases.Job],
    repeats: int,
    log: cases.Log,
    *,
    interleave: bool = True,
    in_process: bool = False,
    limit_s: float = 0.0,
) -> Iterator[dict[str, Measured]]:
    """Prepares the jobs, each in its own process, and runs each `repeats` times.

    With `interleave`, all processes are kept and run in turn; each round reverses the order. Yields the
    measurements so far, by the jobs' names, after every round. If a job dies or takes longer than `limit_s`,
    its `error` says so, and the others continue.
    """
    measured = {job.name: Measured() for job in jobs}

    def died(name: str, death: WorkerError) -> None:
        measured[name].error = str(death)
        log(f"{title}: {name} died: {death}")

    for group in [list(jobs)] if interleave else [[job] for job in jobs]:
        with contextlib.ExitStack() as stack:
            workers: dict[str, Here | Worker] = {}
            # One by one, so that none compiles while another computes.
            for job in group:
                worker: Here | Worker = Here(job) if in_process else Worker(job)
                stack.enter_context(worker)
                head = f"{title}: {job.name}"
                try:
                    setup = worker.prepare(lambda phase, head=head: log(f"{head}: {phase}"))  # type: ignore[misc]
                except WorkerError as death:
                    died(job.name, death)
                else:
                    measured[job.name].setup, workers[job.name] = setup, worker
            for number in range(repeats):
                for variant in list(workers)[:: 1 if number % 2 == 0 else -1]:
                    try:
                        measured[variant].runs.append(workers[variant].run(limit_s))
                    except WorkerError as death:
                        died(variant, death)
                        del workers[variant]
                if shown := [v for v in measured if v in workers and v != cases.MATMUL]:
                    times = (f"{v} {measured[v].runs[-1]['seconds']:.3g} s" for v in shown)
                    log(f"{title}: {number + 1} of {repeats}: {', '.join(times)}")
                yield measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """Suites, cases and repetitions: every field is a flag of `experiments.benchmark`."""

    suite: tuple[str, ...] = setting(
        ("train", "teacher", "sample", "judge", "data"),
        f"What to measure, separated by commas: {', '.join(cases.SUITES)}.",
    )
    batch_size: int = setting(1, "Sequences per training step or generation.")
    num_steps: tuple[int, ...] = setting((8, 16, 32), "Numbers of steps, separated by commas.")
    mode: str = setting(SamplerConfig.mode, "Decoder of --suite=sample.")
    against: str = setting(
        "", "Another decoder in place of the naive code, such as --against=blocks:cache=none."
    )
    coupled: bool = setting(
        False,
        "With --suite=train and sample, also measure the step and generation of a student that sees noise.",
    )
    modes: str = setting(SamplerConfig.mode, "Decoders of --suite=race, separated by spaces.")
    repeats: int = setting(5, "Timed repetitions.")
    warm_up: bool = setting(
        True, "Run each variant once, untimed, before timing; programs are always compiled before."
    )
    limit_s: float = setting(
        0.0,
        "Kill a variant whose repetition takes more seconds than this; the others continue; 0: no "
        "limit.",
    )
    interleave: bool = setting(True, "Let lean and naive code take turns.")
    # Peak memory is then the compiler's account of each program.
    in_process: bool = setting(False, "Measure in this process, not in workers.")
    race_dtypes: tuple[str, ...] = setting(
        ("float32", "bfloat16"), f"Compute dtypes, a race for each: {', '.join(COMPUTE_DTYPES)}."
    )
    race_batches: tuple[int, ...] = setting((1, 4), "Texts written at once, a race for each.")
    race_helper: str = setting(
        "denoiser",
        "The helper of those decoders of --suite=race that accept either kind: the student itself "
        "(denoiser), or a causal model (causal).",
    )

    def __post_init__(self) -> None:
        for suite in self.suite:
            choose("--suite", suite, cases.SUITES)
        for dtype in self.race_dtypes:
            choose("--race_dtypes", dtype, COMPUTE_DTYPES)
        for name in ("suite", "num_steps", "race_dtypes", "race_batches"):
            require(len(getattr(self, name)) > 0, f"--{name} must name at least one.")
        require(
            not self.coupled or any(suite in HAS_COUPLED for suite in self.suite),
            f"--coupled needs --suite={' or '.join(HAS_COUPLED)}; leave it out (--suite=demo has it anyway).",
        )
        require(
            self.suite == ("demo",) or "demo" not in self.suite,
            "--suite=demo must be measured alone, because its config differs.",
        )
        whole(1, **{"--batch_size": self.batch_size, "--repeats": self.repeats})
        several = {f"--{name}": getattr(self, name) for name in ("num_steps", "race_batches")}
        each(whole, 1, **several)
        choose("--race_helper", self.race_helper, HELPERS)
        at_least(0, **{"--limit_s": self.limit_s})
        require(
            not (self.limit_s and self.in_process),
            "--limit_s kills a worker process, and --in_process has none; leave one of them out.",
        )
        require(len(self.modes.split()) > 0, "--modes must name at least one decoder.")
        suites = {*self.suite}
        readers = (
            ("--suite=race", "race" in suites, "modes race_dtypes race_batches race_helper"),
            ("--suite=sample", "sample" in suites, "mode against"),
            ("--suite=sample or race", bool(suites & {"sample", "race"}), "num_steps"),
            ("suites other than demo and race", bool(suites - {"demo", "race"}), "batch_size"),
        )
        require_used(self, readers)
        for steps in self.num_steps:
            for mode in filter(None, (self.mode, self.against)):
                SamplerConfig(steps, mode=mode)


class BenchmarkRow(NamedTuple):
    """Jobs that are measured together."""

    suite: str  # the suite that the row belongs to
    title: str  # in tables and lines of progress
    jobs: list[cases.Job]  # one for each variant


def rows(config: RunConfig, plan: BenchmarkPlan) -> Iterator[BenchmarkRow]:
    """All rows of the plan's suites, in the order of `SUITES`."""
    plain, vocab_size = to_mapping(config), config.vocab_size
    for suite in (suite for suite in cases.SUITES if suite in plan.suite):
        if suite == "demo":
            yield from _demo_rows(config)
        elif suite == "race":
            yield from _race_rows(config, plan)
        else:
            variants = cases.VARIANTS if suite == "data" else (cases.MATMUL, *cases.VARIANTS)
            if plan.coupled and suite in HAS_COUPLED:
                variants = (*variants, cases.COUPLED)
            for steps in plan.num_steps if suite == "sample" else [0]:
                sizes = vocab_size, plan.batch_size, steps
                lean = cases.Job(suite, "lean", plain, *sizes, plan.mode)
                jobs = _variants_of(lean, variants, plan.against)
                yield BenchmarkRow(suite, f"{suite}, {steps} steps" if steps else suite, jobs)


def _variants_of(lean: cases.Job, variants: Sequence[str], naive_mode: str = "") -> list[cases.Job]:
    """A job for each variant; the naive one has a decoder of its own."""
    return [
        dataclasses.replace(lean, variant=v, mode=naive_mode if v == "naive" else lean.mode)
        for v in variants
    ]


def _demo_rows(config: RunConfig) -> Iterator[BenchmarkRow]:
    """The steps of a demo run, each at the run's batch size."""
    # The Bible's text in 27 characters needs 30 pieces, three special ones included; the demo's tokenizer is
    # allowed 64.
    few = config.tokenizer.model_type == "char" and config.data.normalize == "text8"
    vocab_size = min(config.vocab_size, 30) if few else config.vocab_size
    plain, written = to_mapping(config), config.evaluation.batch_size
    for title, suite, batch_size, steps, more in (
        ("teacher step", "teacher", config.teacher.train.batch_size, 0, ()),
        ("distillation step", "train", config.distill.train.batch_size, 0, (cases.COUPLED,)),
        ("8-step generation", "sample", written, 8, (cases.COUPLED,)),
        ("judging", "own_judge", written, 0, ()),
    ):
        lean = cases.Job(suite, "lean", plain, vocab_size, batch_size, steps)
        jobs = _variants_of(lean, (cases.MATMUL, *cases.VARIANTS, *more))
        yield BenchmarkRow("demo", title, jobs)


def _race_rows(config: RunConfig, plan: BenchmarkPlan) -> Iterator[BenchmarkRow]:
    """A race for each dtype and batch: the causal model, and each decoder at each number of calls."""
    for dtype in plan.race_dtypes:
        plain = to_mapping(changed(config, model={"compute_dtype": dtype}))
        for batch in plan.race_batches:
            job = cases.Job(
                "race", cases.CAUSAL, plain, config.vocab_size, batch, helper=plan.race_helper
            )
            jobs = [job] + [
                dataclasses.replace(job, variant=cases.STUDENT, num_steps=calls, mode=mode)
                for mode, calls in itertools.product(plan.modes.split(), plan.num_steps)
            ]
            yield BenchmarkRow(
                "race", f"race, {batch} × {config.data.length} tokens, {dtype}", jobs
            )


def benchmark(
    config: RunConfig, plan: BenchmarkPlan, log: cases.Log, save: Callable[[Entry], None]
) -> Entry:
    """The whole record, JSON-ready: under each suite's name its row, or its rows by title (`sample`: a list).

    `save` is called with the record after every row, and in a race after every repetition of its entrants, so
    that a stop loses little.
    """
    record: Entry = {
        "jax": importlib.metadata.version("jax"),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "config": to_mapping(config),
        "vocab_entries": config.vocab_size + 1,
        "batch_size": plan.batch_size,
        "repeats": plan.repeats,
        "interleaved": plan.interleave,
    }
    for suite, title, jobs in rows(config, plan):
        here = plan.in_process and suite != "data"
        jobs = [dataclasses.replace(job, warm_up=plan.warm_up) for job in jobs]
        rounds = measure(
            title,
            jobs,
            plan.repeats,
            log,
            interleave=plan.interleave,
            in_process=here,
            limit_s=plan.limit_s,
        )
        for measured in rounds:
            if suite == "race":
                record.setdefault("race", {})[title] = report.race_entry(config, jobs, measured)
                save(record)
        if suite == "data":
            record["data"] = report.data_entry(config, measured)
        elif suite == "demo":
            record.setdefault("demo", {})[title] = report.entry(config, jobs[0], measured)
        elif suite == "sample":
            record.setdefault("sample", []).append(report.entry(config, jobs[0], measured))
        elif suite != "race":
            record[suite] = report.entry(config, jobs[0], measured)
        if "data" in record and "train" in record:
            share = report.loading_share(record["data"], record["train"], plan.batch_size)
            record["data"]["share_of_train_step"] = share
        save(record)
    return record


def computing_rows(record: Entry) -> dict[str, Entry]:
    """The rows that have a lean and a naive variant on the device, by title."""
    shown: dict[str, Entry] = {n: record[n] for n in ("train", "teacher") if n in record}
    shown |= {f"sample, {row['num_steps']} steps": row for row in record.get("sample", [])}
    shown |= {n: record[n] for n in ("judge",) if n in record}
    return shown | {f"demo, {title}": row for title, row in record.get("demo", {}).items()}


def deaths(record: Entry) -> dict[str, str]:
    """Why each variant died, by row and variant."""
    shown = computing_rows(record) | ({"data": record["data"]} if "data" in record else {})
    shown |= {title: row["entrants"] for title, row in record.get("race", {}).items()}
    return {
        f"{title}: {variant}": details["error"]
        for title, row in shown.items()
        for variant, details in row.items()
        if isinstance(details, dict) and details.get("error") is not None
    }


def show(record: Entry, console: Console) -> None:
    """Prints the tables."""
    shown = computing_rows(record)
    if shown:
        console.print(report.computing_table(shown))
        console.print(report.memory_table(shown))
        for line in report.roofline_lines(shown) + report.coupled_lines(shown):
            console.print(line, highlight=False, soft_wrap=True)
    for title, row in record.get("race", {}).items():
        console.print(report.race_table(title, row))
    if "data" in record:
        console.print(report.data_table(record["data"]))
        share = record["data"].get("share_of_train_step")
        if share is not None:
            console.print(
                f"Loading takes {100 * share:.2g} % of a lean training step.", highlight=False
            )
    for name, cause in deaths(record).items():
        console.print(f"{name} died: {cause}", style="bold", highlight=False, soft_wrap=True)
