"""One traced step of each kind: which operations take the time."""

import gzip
import re
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from experiments.benchmarking.cases import build
from launch.ahead.hlo_text import parse, source_of
from sdtt_jax.paths import as_path
from tools.accelerator.bench import Bench, BenchRow
from tools.accelerator.steps import SUITES, job, paper

SHOWN, TRACE_BYTES = 10, 6e6


def profile(bench: Bench) -> None:
    """The part "profile": the small size, at the best batch of the part "training"."""
    config = paper("small", tiny=bench.tiny)
    for kind, suite in SUITES.items():
        if not bench.has(15, f"the profile of {kind}"):
            continue
        batch = best_batch(bench, kind)
        try:
            case = build(job(bench, suite, config, batch), lambda _: None)
            case.repeat()
            events, step_s = traced(case.repeat, bench, kind)
        except Exception as error:
            bench.note(f"{kind}: no profile, because of {type(error).__name__}: {error}"[:300])
            continue
        origin = origins(case.program.as_text() or "") if case.program else {}
        ranked = sorted(events.items(), key=lambda item: -item[1][0])
        busy = sum(seconds for seconds, _ in events.values())
        bench.note(
            f"{kind}, batch {batch}: a traced step takes {1e3 * step_s:.0f} ms, and its operations add up to "
            f"{1e3 * busy:.0f} ms (some run at the same time)."
        )
        bench.record.setdefault("operations", {})[kind] = [
            [name, seconds, count, origin.get(name)] for name, (seconds, count) in ranked[:100]
        ]
        costliest, done = _rows(ranked[:SHOWN], busy, origin), by_group(events, origin)
        bench.rows(f"{kind}: the {SHOWN} costliest operations", costliest)
        bench.rows(f"{kind}: by what is done", _rows(done, busy, {}))


def best_batch(bench: Bench, kind: str) -> int:
    """The batch with the most tokens/s in the part "training", or one that fits anywhere."""
    rows = bench.earlier.get("training", {}).get("tables", {}).get("steps", [])
    rows = [row for row in rows if row["step"] == kind and "tokens/s" in row]
    return max(rows, key=lambda row: row["tokens/s"])["batch"] if rows else 2 if bench.tiny else 8


def traced(repeat: Any, bench: Bench, kind: str) -> tuple[dict[str, tuple[float, int]], float]:
    """Seconds and calls of each operation of one repetition, and the repetition's seconds.

    The trace itself is kept if it is small.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            step_s = repeat()["seconds"]
        (file,) = as_path(folder).rglob("*.xplane.pb")
        packed = gzip.compress(file.read_bytes(), 6)
        if len(packed) < TRACE_BYTES:
            (bench.folder / f"{kind}.xplane.pb.gz").write_bytes(packed)
        return operations(jax.profiler.ProfileData.from_file(str(file))), step_s


def operations(data: Any) -> dict[str, tuple[float, int]]:
    """Seconds and calls by operation, from a trace of a TPU, a GPU or a CPU.

    A TPU has a line "XLA Ops" for each core, a GPU a line "Stream …" for each stream, a CPU threads whose
    events say which operation they belong to. Loops and calls are left out: their spans cover their bodies,
    which the trace lists too.
    """
    totals: dict[str, tuple[float, int]] = {}
    for plane in data.planes:
        device = plane.name.startswith("/device:") and "CUSTOM" not in plane.name
        lines = list(plane.lines)
        whole = [line for line in lines if line.name == "XLA Ops"]
        streams = [line for line in lines if line.name.startswith("Stream")]
        for line in (streams or whole) if device else lines if plane.name == "/host:CPU" else []:
            for event in line.events:
                stats = dict(event.stats)
                name = str(stats.get("hlo_op") or (event.name if device else ""))
                if not name or re.match(r"(while|call|cond|conditional)(\W|$)|jit_", name):
                    continue
                seconds, count = totals.get(name.lstrip("%"), (0.0, 0))
                totals[name.lstrip("%")] = seconds + event.duration_ns / 1e9, count + 1
    return totals


def origins(program: str) -> dict[str, str]:
    """Operation -> where it comes from in the program, from the compiled text's metadata.

    A fusion without metadata is named by the last operation within it; the text lists its body first.
    """
    found: dict[str, str] = {}
    last: dict[str, str] = {}
    for computation, instructions in parse(program)[0].items():
        for instruction in instructions.values():
            if instruction.op_name:
                found[instruction.name] = last[computation] = instruction.op_name
            for inside in instruction.called("calls"):
                found.setdefault(instruction.name, last.get(inside, ""))
    return {name: origin for name, origin in found.items() if origin}


def group(name: str, origin: str) -> str:
    """What an operation does and in which part of a step, for a table of a dozen lines."""
    if "optimizer" in origin:
        return "optimizer"
    if "attention" in name + origin.rsplit("/", 1)[-1]:
        what = "attention"
    elif origin.endswith("dot_general") or re.match(r"custom-call|cublas|gemm|dot", name):
        what = "matmuls"
    elif re.search("dynamic.(update.)?slice", name + origin) and "reduce" not in name:
        what = "saving and reading activations in the loop"
    else:
        what = "all else"
    if "loss_rows" in origin or "/head/" in origin:
        where = "head and loss"
    elif "rematted" in origin:
        where = "recomputed"
    else:
        where = "backward" if "transpose(" in origin else "forward"
    return f"{what}, {where}"


def by_group(
    events: Mapping[str, tuple[float, int]], origin: Mapping[str, str]
) -> list[tuple[str, tuple[float, int]]]:
    """Events summed by `group`, the costliest first."""
    totals: dict[str, tuple[float, int]] = {}
    for name, (seconds, count) in events.items():
        what = group(name, origin.get(name, ""))
        before = totals.get(what, (0.0, 0))
        totals[what] = before[0] + seconds, before[1] + count
    return sorted(totals.items(), key=lambda item: -item[1][0])


def _rows(
    ranked: Iterable[tuple[str, tuple[float, int]]], busy: float, origin: Mapping[str, str]
) -> list[BenchRow]:
    return [
        {"operation": name, "ms": 1e3 * seconds, "calls": count, "share": seconds / busy}
        | ({"from": source_of(origin.get(name, ""))} if origin else {})
        for name, (seconds, count) in ranked
    ]
