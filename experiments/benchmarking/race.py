"""The race's record and its table: the student at several numbers of calls against the causal model."""

from collections.abc import Sequence

from rich.table import Table

from experiments.benchmarking import report
from experiments.benchmarking.cases import CAUSAL, Job
from experiments.benchmarking.report import Entry, Measured
from experiments.settings import RunConfig
from sdtt_jax.networks.flops import judge_flops


def entry(config: RunConfig, jobs: Sequence[Job], measured: dict[str, Measured]) -> Entry:
    """The record of one race; `measured` is by the names of its jobs.

    It holds batch, length, dtype and device and, under `entrants`, for each job's name: median seconds, how
    many times as fast as the causal model (`ratio`), tokens per second, unavoidable GFLOP, peak memory, and
    all details.
    """
    first = jobs[0]
    causal = measured[CAUSAL].median()
    return {
        "batch_size": first.batch_size,
        "length": config.data.length,
        "compute_dtype": first.config["model"]["compute_dtype"],
        "device": report.device(measured),
        "entrants": {job.name: _entrant(config, job, measured[job.name], causal) for job in jobs},
    }


def _entrant(config: RunConfig, job: Job, measured: Measured, causal: float | None) -> Entry:
    sizes, median = config.denoiser(job.vocab_size), measured.median()
    calls = measured.median("calls")
    if job.variant == CAUSAL:
        flops: float | None = judge_flops(sizes, job.batch_size)
    else:
        flops = report.sampler_flops(config, job, calls)
    return report.details(measured) | {
        "median_s": median,
        "ratio": report.ratio(causal, median),
        "calls": calls,
        "tokens_per_s": report.ratio(job.batch_size * sizes.length, median),
        "unavoidable_gflop": None if flops is None else flops / 1e9,
        "peak_gb": measured.peak_gb,
    }


def table(title: str, race: Entry) -> Table:
    """Seconds, ratio, tokens per second and peak memory of each entrant."""
    columns = ("calls", "seconds: median (range)", "times as fast", "tokens/s", "peak GB")
    caption = "times as fast: compared with the causal model and its cache"
    shown = report.table_of(title, caption, *columns)
    for name, row in race["entrants"].items():
        shown.add_row(
            name,
            report.number(row["calls"], ".0f"),
            report.spread(row["median_s"], row),
            report.number(row["ratio"], ".2f"),
            report.number(row["tokens_per_s"], ",.0f"),
            report.number(row["peak_gb"], ".2f"),
        )
    return shown
