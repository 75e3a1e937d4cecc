"""The benchmark's record (JSON) and tables, as pure functions of the workers' measurements."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from experiments.benchmarking.cases import CAUSAL, COUPLED, MATMUL, VARIANTS, Job, judge_sizes
from experiments.benchmarking.data import PHASES
from experiments.cli.tables import rich_table
from experiments.settings import RunConfig
from sdtt_jax.networks.flops import (
    FORWARD_AND_BACKWARD,
    distill_flops,
    judge_flops,
    sample_flops,
    teacher_flops,
)

Entry = dict[str, Any]


@dataclasses.dataclass
class Measured:
    """The measurements of one variant."""

    # From building it: `compile_s`, `setup_s`, `memory`, `device`, …; empty if that failed.
    setup: dict[str, Any] = dataclasses.field(default_factory=dict)
    # One for each repetition, with `peak_gb`.
    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    error: str | None = None  # why its process ended early, or None

    def median(self, name: str = "seconds") -> float | None:
        """Median over repetitions; None if the variant died or does not measure this."""
        values = [run[name] for run in self.runs if run.get(name) is not None]
        return statistics.median(values) if values and self.error is None else None

    def largest(self, name: str) -> float | None:
        """Largest over repetitions, also of a variant that died; None if it does not measure this."""
        return max((run[name] for run in self.runs if run.get(name) is not None), default=None)

    @property
    def peak_gb(self) -> float | None:
        """Peak memory: as the device reports it, else of the process, else of the compiled program."""
        memory = self.setup.get("memory")
        peaks = [self.largest(name) for name in ("device_peak_gb", "peak_gb")]
        if memory:
            peaks.append(sum(memory.values()) - 2 * memory["alias_gb"])
        return next((peak for peak in peaks if peak is not None), None)


def entry(config: RunConfig, job: Job, measured: dict[str, Measured]) -> Entry:
    """The record of one row with a lean and a naive variant on the device.

    `job` is any job of the row; `measured` is by variant, the yardstick `matmul` included.
    """
    lean, naive = measured["lean"], measured["naive"]
    flops = unavoidable_flops(config, job, measured)
    rate = measured[MATMUL].median("flops_per_s")
    record: Entry = {"num_steps": job.num_steps} if job.suite == "sample" else {}
    if COUPLED in measured:
        record |= _coupled_entry(config, job, measured[COUPLED], lean)
    return record | {
        "lean_s": lean.median(),
        "naive_s": naive.median(),
        "ratio": ratio(naive.median(), lean.median()),
        "matmul_share": ratio(ratio(flops, rate), lean.median()),
        "naive_matmul_share": ratio(ratio(flops, rate), naive.median()),
        "tokens_per_s": ratio(job.batch_size * config.data.length, lean.median()),
        "lean_peak_gb": lean.peak_gb,
        "naive_peak_gb": naive.peak_gb,
        "unavoidable_gflop": ratio(flops, 1e9),
        "matmul_gflop_per_s": ratio(rate, 1e9),
        "device": device(measured),
        "lean": details(lean),
        "naive": details(naive),
        MATMUL: details(measured[MATMUL]),
    }


def _coupled_entry(config: RunConfig, job: Job, coupled: Measured, lean: Measured) -> Entry:
    """The cost of a noise-coupled student for each network call, relative to an ordinary one.

    A forward pass is a call, a backward pass two. Both train with the same optimizer. The ordinary student's
    teacher is called in every step. The coupled student's teacher made its trajectories before training; a
    step's share of those calls is counted in `coupled_whole_ratio`.
    """
    k, trajectories = config.distill.num_distill_steps, config.distill.num_trajectories
    if job.suite == "sample":
        calls = coupled.median("calls"), lean.median("calls")
    else:
        student = float(FORWARD_AND_BACKWARD)
        calls = student, student + 1 + trajectories * (k - 1)
    per_call = [ratio(of.median(), n) for of, n in zip((coupled, lean), calls, strict=True)]
    record: Entry = {
        "coupled_s": coupled.median(),
        "coupled_calls": calls[0],
        "lean_calls": calls[1],
        "coupled_ratio": ratio(*per_call),
        "coupled_peak_gb": coupled.peak_gb,
        COUPLED: details(coupled),
    }
    call_s = coupled.setup.get("trajectory_call_s")
    if call_s is not None and record["coupled_s"] is not None:
        stage = config.coupled
        shown = stage.train.num_steps * stage.train.batch_size
        more = stage.num_calls * (stage.num_trajectories or shown) / shown
        whole = (record["coupled_s"] + more * call_s) / (record["coupled_calls"] + more)
        record |= {"trajectory_calls": more, "trajectory_call_s": call_s}
        record["coupled_whole_ratio"] = ratio(whole, per_call[1])
    return record


def unavoidable_flops(config: RunConfig, job: Job, measured: dict[str, Measured]) -> float | None:
    """FLOPs of one repetition, from the counts of the lean variant, or of the naive one if it died."""
    sizes, batch, lean = config.denoiser(job.vocab_size), job.batch_size, measured["lean"]
    if "judge" in job.suite:
        return judge_flops(judge_sizes(job, config), batch)
    counted = lean if lean.median() is not None else measured["naive"]
    if job.suite == "sample":
        return sampler_flops(config, job, counted.median("calls"))
    count = counted.median("masked")
    if count is None:
        return None
    if job.suite == "teacher":
        return teacher_flops(sizes, batch, count)
    k, trajectories = config.distill.num_distill_steps, config.distill.num_trajectories
    return distill_flops(sizes, batch, count, num_distill_steps=k, num_trajectories=trajectories)


def sampler_flops(config: RunConfig, job: Job, calls: float | None) -> float | None:
    """FLOPs of a generation; None if its calls were not counted, or compute only a part of the text each."""
    if calls is None or job.mode.startswith("blocks"):
        return None
    return sample_flops(config.denoiser(job.vocab_size), job.batch_size, calls)


def data_entry(config: RunConfig, measured: dict[str, Measured]) -> Entry:
    """The record of the data suite: seconds and tokens per second of each phase."""
    record: Entry = {
        "tokens": _first(measured, "tokens"),
        "sequences": _first(measured, "sequences"),
        "batch_size": config.distill.train.batch_size,
    }
    for phase in PHASES:
        tokens = _first(measured, "loaded_tokens" if phase.startswith("load") else "tokens")
        seconds = {variant: measured[variant].median(phase) for variant in VARIANTS}
        record[phase] = {"ratio": ratio(seconds["naive"], seconds["lean"])}
        for variant in VARIANTS:
            record[phase][f"{variant}_s"] = seconds[variant]
            record[phase][f"{variant}_tokens_per_s"] = ratio(tokens, seconds[variant])
            if phase.startswith("load") and tokens is not None and seconds[variant] is not None:
                batches = tokens / (config.data.length * config.distill.train.batch_size)
                record[phase][f"{variant}_s_per_batch"] = ratio(seconds[variant], batches)
    return record | {
        "prepare_s": measured["lean"].setup.get("prepare_s"),
        "lean_peak_gb": measured["lean"].peak_gb,
        "naive_peak_gb": measured["naive"].peak_gb,
        "lean": details(measured["lean"]),
        "naive": details(measured["naive"]),
    }


def race_entry(config: RunConfig, jobs: Sequence[Job], measured: dict[str, Measured]) -> Entry:
    """The record of one race; `measured` and `entrants` are by the names of its jobs."""
    first, causal = jobs[0], measured[CAUSAL].median()
    return {
        "batch_size": first.batch_size,
        "length": config.data.length,
        "compute_dtype": first.config["model"]["compute_dtype"],
        "device": device(measured),
        "entrants": {job.name: _entrant(config, job, measured[job.name], causal) for job in jobs},
    }


def _entrant(config: RunConfig, job: Job, measured: Measured, causal: float | None) -> Entry:
    sizes, median = config.denoiser(job.vocab_size), measured.median()
    calls, is_causal = measured.median("calls"), job.variant == CAUSAL
    flops = judge_flops(sizes, job.batch_size) if is_causal else sampler_flops(config, job, calls)
    return details(measured) | {
        "median_s": median,
        "ratio": ratio(causal, median),
        "calls": calls,
        "tokens_per_s": ratio(job.batch_size * sizes.length, median),
        "unavoidable_gflop": ratio(flops, 1e9),
        "peak_gb": measured.peak_gb,
    }


def loading_share(data: Entry, train: Entry, batch_size: int) -> float | None:
    """Seconds of loading one training batch over those of one lean training step."""
    per_text = ratio(data["load"].get("lean_s_per_batch"), data["batch_size"])
    return ratio(per_text, ratio(train["lean_s"], batch_size))


def device(measured: dict[str, Measured]) -> Any:
    """The device that jobs ran on; None where none was set up."""
    return next((m.setup["device"] for m in measured.values() if m.setup), None)


def details(measured: Measured) -> Entry:
    """All measurements of one variant, with their range."""
    seconds = [run["seconds"] for run in measured.runs]
    last = measured.runs[-1] if measured.runs else {}
    return {
        "error": measured.error,
        "seconds": seconds,
        "low_s": min(seconds, default=None),
        "high_s": max(seconds, default=None),
        **{name: value for name, value in measured.setup.items() if name != "device"},
        **{name: value for name, value in last.items() if name != "seconds"},
    }


def ratio(above: float | None, below: float | None) -> float | None:
    """`above / below`; None if one is missing or the divisor is zero."""
    return above / below if above is not None and below else None


def computing_table(rows: dict[str, Entry]) -> Table:
    """Times, shares and memory of what runs on the device, one row per title."""
    columns = ("lean", "naive", "naive / lean", "share of matmul", "peak GB")
    cells = (
        (
            title,
            spread(row["lean_s"], row["lean"]),
            spread(row["naive_s"], row["naive"]),
            number(row["ratio"], ".2f"),
            _pair(row["matmul_share"], row["naive_matmul_share"], ".0%"),
            _pair(row["lean_peak_gb"], row["naive_peak_gb"], ".2f"),
        )
        for title, row in rows.items()
    )
    title, caption = "seconds: median (smallest–largest)", "a | b: lean | naive"
    return rich_table(("", *columns), cells, columns, title=title, caption=caption)


def memory_table(rows: dict[str, Entry]) -> Table:
    """Memory according to the compiler and to the process, one row per title and variant."""
    names = {
        "arguments": "arguments_gb",
        "outputs": "outputs_gb",
        "in place": "alias_gb",
        "temporaries": "temporaries_gb",
    }
    cells = []
    for title, row in rows.items():
        for variant in VARIANTS:
            shown = row[variant]
            numbers = [(shown.get("memory") or {}).get(name) for name in names.values()]
            numbers += [shown.get("run_peak_gb"), shown.get("peak_gb")]
            figures = [number(value, ".2f") for value in numbers]
            figures.append(number(shown.get("compile_s"), ".1f"))
            cells.append((f"{title}, {variant}", *figures))
    columns = (*names, "peak, running", "peak", "compile s")
    title = "memory in GB, according to the compiler and as measured; seconds to compile"
    return rich_table(("", *columns), cells, columns, title=title)


def roofline_lines(rows: dict[str, Entry]) -> list[str]:
    """One sentence per row: FLOPs, the time they would take as matmuls, and the time taken."""
    lines = []
    for title, row in rows.items():
        flops, rate, share = (
            row[name] for name in ("unavoidable_gflop", "matmul_gflop_per_s", "matmul_share")
        )
        if share is None:
            continue
        lines.append(
            f"{title}: {flops:,.4g} unavoidable GFLOP would take {flops / rate:.3g} s at the "
            f"{rate:,.3g} GFLOP/s of {row[MATMUL]['shapes']}; lean takes {row['lean_s']:.3g} s, "
            f"which is {share:.0%} of that speed."
        )
    return lines


def coupled_lines(rows: dict[str, Entry]) -> list[str]:
    """One sentence for each row with a noise-coupled student."""
    lines = []
    for title, row in rows.items():
        if row.get("coupled_ratio") is None:
            continue
        line = (
            f"{title}: a student that sees noise takes {row['coupled_s']:.3g} s for "
            f"{row['coupled_calls']:.3g} network calls, lean {row['lean_s']:.3g} s for "
            f"{row['lean_calls']:.3g}: {row['coupled_ratio']:.2f} times as long for each call"
        )
        if row.get("coupled_whole_ratio") is not None:
            line += (
                f", and {row['coupled_whole_ratio']:.2f} times if the {row['trajectory_calls']:.3g} calls "
                "of the teacher's trajectories are included"
            )
        lines.append(f"{line}.")
    return lines


def data_table(data: Entry) -> Table:
    """Tokens per second of each phase."""
    caption = f"batches of {data['batch_size']}; a | b: lean | naive"
    columns, cells = ("lean", "naive", "lean / naive", "seconds per batch"), []
    for phase in PHASES:
        row = data[phase]
        rates = [
            "died" if data[v]["error"] is not None else number(row[f"{v}_tokens_per_s"], ",.0f")
            for v in VARIANTS
        ]
        per_batch = (row.get("lean_s_per_batch"), row.get("naive_s_per_batch"))
        shown = _pair(*per_batch, ".2g") if any(per_batch) else ""
        cells.append((phase.replace("_", " "), *rates, number(row["ratio"], ".2f"), shown))
    title = "data: tokens per second"
    return rich_table(("", *columns), cells, columns, title=title, caption=caption)


def race_table(title: str, race: Entry) -> Table:
    """Seconds, ratio, tokens per second and peak memory of each entrant."""
    columns = ("calls", "seconds: median (range)", "times as fast", "tokens/s", "peak GB")
    cells = (
        (
            name,
            number(row["calls"], ".0f"),
            spread(row["median_s"], row),
            number(row["ratio"], ".2f"),
            number(row["tokens_per_s"], ",.0f"),
            number(row["peak_gb"], ".2f"),
        )
        for name, row in race["entrants"].items()
    )
    caption = "times as fast: compared with the causal model and its cache"
    return rich_table(("", *columns), cells, columns, title=title, caption=caption)


def _first(measured: dict[str, Measured], name: str) -> float | None:
    medians = (measured[variant].median(name) for variant in VARIANTS)
    return next((value for value in medians if value is not None), None)


def spread(median: float | None, variant: Entry) -> str:
    """The table cell for the seconds of one variant: their median and, from its details, their range."""
    if median is None:
        return "died" if variant["error"] is not None else "–"
    return f"{median:.3g} ({variant['low_s']:.3g}–{variant['high_s']:.3g})"


def number(value: float | None, form: str) -> str:
    """`value` formatted by `form`; a dash if it is missing."""
    return "–" if value is None else format(value, form)


def _pair(lean: float | None, naive: float | None, form: str) -> str:
    return f"{number(lean, form)} | {number(naive, form)}"
