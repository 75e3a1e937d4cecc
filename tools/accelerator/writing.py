"""How fast texts are written: the student at several numbers of calls, alone and against the causal model."""

import dataclasses
import statistics

from experiments.benchmarking.cases import CAUSAL, STUDENT, Job, build
from experiments.settings import RunConfig
from sdtt_jax.networks.flops import sample_flops
from tools.accelerator.bench import Bench, BenchRow, share_of_peak
from tools.accelerator.steps import job, paper

CALLS = (32, 16, 8)
WHOLE = "s for the batch"
REPEATS = 5


def sampling(bench: Bench) -> None:
    """The part "sampling": the small size."""
    config = paper("small", tiny=bench.tiny)
    batches = (2,) if bench.tiny else (1, 8, 64, 32, 16, 128)
    best: BenchRow | None = None
    took = 30.0
    for calls in CALLS[:1] if bench.tiny else CALLS:
        for batch in batches:
            if not bench.has(took, f"{calls} calls at batch {batch}"):
                continue
            work = job(bench, "sample", config, batch, calls)
            what = {"calls": calls, "batch": batch}
            row = bench.row("sampling", what, _timed, bench, work, config)
            took = 1.2 * bench.took
            if calls == CALLS[0] and "error" not in row:
                best = max(best or row, row, key=lambda row: row["tokens/s"])
    if best is not None:
        bench.note(
            f"{best['calls']} calls, small: best at batch {best['batch']}, {best['tokens/s']:,.0f} tokens/s."
        )


def race(bench: Bench) -> None:
    """The part "race": whole texts of the small size."""
    config = paper("small", tiny=bench.tiny)
    causal: dict[int, float] = {}
    took = 20.0
    for calls in (None, *((8,) if bench.tiny else (16, 8, 32))):
        for batch in (2,) if bench.tiny else (8, 1):
            title = "causal, with its cache" if calls is None else f"student, {calls} calls"
            if not bench.has(took, f"{title}, batch {batch}"):
                continue
            work = job(bench, "race", config, batch, calls or 0)
            work = dataclasses.replace(work, variant=CAUSAL if calls is None else STUDENT)
            what = {"batch": batch, "who": title}
            row = bench.row("race", what, _timed, bench, work, config, causal.get(batch))
            took = 1.2 * bench.took
            if calls is None and "error" not in row:
                causal[batch] = row[WHOLE]
            elif row.get("times as fast") and calls == 16:
                bench.note(
                    f"16 calls, batch {batch}: {row['times as fast']:.1f} times as fast as the causal model."
                )


def _timed(bench: Bench, work: Job, config: RunConfig, causal: float | None = None) -> BenchRow:
    """Median times of whole batches, with the MFU or, in the race, the speed relative to the causal model."""
    case = build(work, lambda _: None)
    case.repeat()
    runs = [case.repeat() for _ in range(2 if bench.tiny else REPEATS)]
    seconds, calls = statistics.median(run["seconds"] for run in runs), runs[0]["calls"]
    row: BenchRow = {
        WHOLE: seconds,
        "ms per call": 1e3 * seconds / calls,
        "tokens/s": work.batch_size * config.data.length / seconds,
        "compile s": case.setup["compile_s"],
    }
    if work.suite == "race":
        return row | {"times as fast": None if causal is None else causal / seconds}
    flops = sample_flops(config.denoiser(work.vocab_size), work.batch_size, calls)
    return row | {"MFU": share_of_peak(flops / seconds)}
