"""Training steps of the paper's sizes: at growing batches, and under other settings.

Cases are those of `experiments.benchmark`: a whole step with optimizer and moving average, about half of the
tokens masked.
"""

import contextlib
import dataclasses
import functools
import importlib
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

from experiments.benchmarking.cases import Job, build
from experiments.benchmarking.report import Measured, unavoidable_flops
from experiments.configs.owt_small import owt
from experiments.settings import RunConfig
from sdtt_jax.config import to_mapping
from sdtt_jax.ops import rows
from tools.accelerator.bench import Bench, Row, chip, share_of_peak

# What the benchmark calls the steps.
SUITES = {"teacher": "teacher", "distill": "train"}
VOCAB = 50_257
TINY = {"num_layers": 2, "embed_dim": 32, "num_heads": 2}
TINY_VOCAB, TINY_LENGTH = 100, 16
REPEATS, LARGEST = 8, 512


def training(bench: Bench) -> None:
    """The part "training": the small size."""
    _search(bench, "small", 16)


def medium(bench: Bench) -> None:
    """The part "medium"."""
    _search(bench, "medium", 16)


def paper(size: str, *, tiny: bool, **model: Any) -> RunConfig:
    """The paper's run of a size, or one for a CPU; `model` replaces fields of the network's config."""
    config = owt(size)
    fields = (TINY if tiny else {}) | model
    data = dataclasses.replace(config.data, length=TINY_LENGTH) if tiny else config.data
    return dataclasses.replace(config, data=data, model=dataclasses.replace(config.model, **fields))


def job(bench: Bench, suite: str, config: RunConfig, batch: int, num_steps: int = 0) -> Job:
    """A job of the benchmark's lean path."""
    vocab = TINY_VOCAB if bench.tiny else VOCAB
    return Job(suite, "lean", to_mapping(config), vocab, batch, num_steps)


def step(bench: Bench, kind: str, config: RunConfig, batch: int) -> Row:
    """Times a step: tokens/s, MFU, and what the compiler says of memory.

    Args:
      bench: whose sizes.
      kind: a key of `SUITES`.
      config: of the run.
      batch: sequences.
    """
    work = job(bench, SUITES[kind], config, batch)
    case = build(work, lambda _: None)
    case.repeat()
    runs = [case.repeat() for _ in range(2 if bench.tiny else REPEATS)]
    seconds = statistics.median(run["seconds"] for run in runs)
    flops = unavoidable_flops(config, work, {"lean": Measured(runs=runs)})
    assert flops is not None
    memory = case.setup["memory"]
    return {
        "tokens/s": batch * config.data.length / seconds,
        "ms": 1e3 * seconds,
        "TFLOP/s": flops / seconds / 1e12,
        "MFU": share_of_peak(flops / seconds),
        "compiled GB": memory and memory["arguments_gb"] + memory["temporaries_gb"],
        "compile s": case.setup["compile_s"],
    }


def _search(bench: Bench, size: str, start: int) -> None:
    """Doubles the batch while it fits; two batches tell how much memory the next ones will take."""
    config = paper(size, tiny=bench.tiny)
    largest = 2 if bench.tiny else LARGEST
    for kind in SUITES:
        batch, tried, took = (2 if bench.tiny else start), [], 60.0
        while batch <= largest and bench.has(0 if bench.tiny else took, f"{kind} at batch {batch}"):
            began = time.monotonic()
            row = bench.row(
                "steps",
                {"step": kind, "batch": batch},
                functools.partial(step, bench, kind, config, batch),
            )
            took = 1.3 * (time.monotonic() - began)
            if "error" in row:
                break
            tried.append(row)
            batch = _next_batch(tried, largest)
        if tried:
            best = max(tried, key=lambda row: row["tokens/s"])
            share = f", MFU {best['MFU']:.0%}" if best["MFU"] is not None else ""
            bench.note(
                f"{kind}, {size}: best at batch {best['batch']}, {best['tokens/s']:,.0f} tokens/s{share}; "
                f"the largest that was run is {tried[-1]['batch']}."
            )


def _next_batch(tried: list[Row], largest: int) -> int:
    """Twice the last batch; after two, the largest that fits by their memory, so that few are compiled."""
    last, known = tried[-1], chip()
    if len(tried) < 2 or known is None or last["compiled GB"] is None:
        return 2 * last["batch"]
    before = tried[-2]
    each = (last["compiled GB"] - before["compiled GB"]) / (last["batch"] - before["batch"])
    batch = 2 * last["batch"]
    while (
        2 * batch <= largest
        and last["compiled GB"] + each * (2 * batch - last["batch"]) < known.usable / 1e9
    ):
        batch *= 2
    return batch


@contextlib.contextmanager
def _turns(turns: int) -> Iterator[None]:
    """Chunks of rows so large that all rows make up `turns` of them."""
    with mock.patch.object(rows, "MAX_TURNS", turns):
        yield


@contextlib.contextmanager
def _unrolled() -> Iterator[None]:
    """Blocks one after the other instead of in a loop."""
    linen = importlib.import_module("flax.linen")
    with mock.patch.object(linen, "scan", functools.partial(linen.scan, unroll=True)):
        yield


# Setting -> fields of the network's config, and a context.
SETTINGS: Mapping[str, tuple[dict[str, Any], Any]] = {
    "as it is": ({}, contextlib.nullcontext),
    "head in 8 chunks": ({}, functools.partial(_turns, 8)),
    "blocks unrolled": ({}, _unrolled),
    "remat none": ({"remat": "none"}, contextlib.nullcontext),
    "remat attention": ({"remat": "attention"}, contextlib.nullcontext),
    "head in 24 chunks": ({}, functools.partial(_turns, 24)),
    "float32": ({"compute_dtype": "float32"}, contextlib.nullcontext),
}


def tuning(bench: Bench) -> None:
    """The part "tuning": a teacher's step, small size, one setting changed at a time."""
    batch, took = (2 if bench.tiny else 32), 45.0
    for name, (fields, context) in SETTINGS.items():
        if bench.tiny and name not in ("head in 8 chunks", "blocks unrolled"):
            continue
        if not bench.has(0 if bench.tiny else took, name):
            continue
        config = paper("small", tiny=bench.tiny, **fields)
        began = time.monotonic()
        with context():
            bench.row(
                f"teacher, batch {batch}",
                {"setting": name},
                functools.partial(step, bench, "teacher", config, batch),
            )
        took = 1.2 * (time.monotonic() - began)
