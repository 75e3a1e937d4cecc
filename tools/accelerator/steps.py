"""Training steps of the paper's sizes, at growing batches and under other settings; a state to disk and back.

Cases are those of `experiments.benchmark`: a whole step with optimizer and moving average, about half of the
tokens masked.
"""

import functools
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarking.cases import Job, build
from experiments.benchmarking.inputs import timed
from experiments.benchmarking.report import Measured, unavoidable_flops
from experiments.configs.owt_small import owt
from experiments.settings import RunConfig
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.config import changed, to_mapping
from sdtt_jax.networks import Denoiser
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.paths import as_path
from sdtt_jax.training.state import StateSpec, TrainState
from tools.accelerator.bench import Bench, BenchRow, chip, share_of_peak

# What the benchmark calls the steps.
SUITES = {"teacher": "teacher", "distill": "train"}
VOCAB = 50_257
TINY = {"num_layers": 1, "embed_dim": 32, "num_heads": 2}
TINY_VOCAB, TINY_LENGTH = 100, 16
REPEATS, SMALLEST, LARGEST = 8, 16, 512
ENOUGH_S = 3.0


def paper(size: str, *, tiny: bool, **model: Any) -> RunConfig:
    """The paper's run of a size, or one for a CPU; `model` replaces fields of the network's config."""
    data = {"length": TINY_LENGTH} if tiny else {}
    return changed(owt(size), data=data, model=(TINY if tiny else {}) | model)


def job(bench: Bench, suite: str, config: RunConfig, batch: int, num_steps: int = 0) -> Job:
    """A job of the benchmark's lean path."""
    vocab = TINY_VOCAB if bench.tiny else VOCAB
    return Job(suite, "lean", to_mapping(config), vocab, batch, num_steps)


def step(bench: Bench, kind: str, config: RunConfig, batch: int) -> BenchRow:
    """Times a step of a kind in `SUITES`: tokens/s, MFU, and what the compiler says of memory."""
    work = job(bench, SUITES[kind], config, batch)
    case = build(work, lambda _: None)
    case.repeat()
    runs: list[Any] = []
    # Times hardly differ on a machine that does nothing else: a few of a long step are enough.
    while len(runs) < (2 if bench.tiny else REPEATS) and (
        len(runs) < 3 or sum(run["seconds"] for run in runs) < ENOUGH_S
    ):
        runs.append(case.repeat())
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


def training(bench: Bench, size: str = "small") -> None:
    """The part "training": doubles the batch while it fits.

    Two batches tell how much memory the next ones will take.
    """
    config = paper(size, tiny=bench.tiny)
    largest = 2 if bench.tiny else LARGEST
    for kind in SUITES:
        batch, tried, took = (2 if bench.tiny else SMALLEST), [], 60.0
        while batch <= largest and bench.has(took, f"{kind} at batch {batch}"):
            what = {"step": kind, "batch": batch}
            row = bench.row("steps", what, step, bench, kind, config, batch)
            took = 1.3 * bench.took
            if "error" in row:
                break
            tried.append(row)
            batch = _next_batch(tried, largest)
        if tried:
            best = max(tried, key=lambda row: row["tokens/s"])
            share = f", MFU {best['MFU']:.0%}" if best["MFU"] is not None else ""
            bench.note(
                f"{kind}, {size}: best at batch {best['batch']}, {best['tokens/s']:,.0f} tokens/s{share}; "
                f"the largest that ran is {tried[-1]['batch']}."
            )


medium = functools.partial(training, size="medium")  # the part of this name


def _next_batch(tried: list[BenchRow], largest: int) -> int:
    """Twice the last batch; after two, the largest whose predicted memory fits, so that few are compiled."""
    last, known = tried[-1], chip()
    if len(tried) < 2 or known is None or last["compiled GB"] is None:
        return 2 * last["batch"]
    before = tried[-2]
    each = (last["compiled GB"] - before["compiled GB"]) / (last["batch"] - before["batch"])
    room = known.usable / 1e9 - last["compiled GB"]
    batch = 2 * last["batch"]
    while 2 * batch <= largest and each * (2 * batch - last["batch"]) < room:
        batch *= 2
    return batch


ALL = {"unroll": 12}
PLAIN = "as it is"
# Fields of the network's config.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    PLAIN: {},
    "no loop over blocks": ALL,
    "no loop, remat none": ALL | {"remat": "none"},
    "4 blocks in a turn of the loop": {"unroll": 4},
    "float32": {"compute_dtype": "float32"},
    "remat attention": {"remat": "attention"},
    "remat none": {"remat": "none"},
}


def tuning(bench: Bench) -> None:
    """The part "tuning": steps of the small size under other settings.

    The forms of the loop over blocks come first, in the teacher's step at a batch at which compiling takes
    longer than running. The fastest then runs at both batches in both steps, as does the step as it is. The
    remaining settings come last, in the teacher's step again.
    """
    small, large = (2, 2) if bench.tiny else (32, 256)
    names = [PLAIN, "no loop over blocks"] if bench.tiny else list(SETTINGS)
    known = _tuned(bench, "teacher", small, names[:3])
    loops = [name for name in known if "loop" in name]
    pair = [max(loops, key=known.__getitem__), PLAIN] if loops else [PLAIN]
    cases = [("teacher", large), ("distill", large), ("distill", small)]
    for kind, batch in cases[-1:] if bench.tiny else cases:
        _tuned(bench, kind, batch, pair)
    _tuned(bench, "teacher", small, names[3:])


def _tuned(bench: Bench, kind: str, batch: int, names: Sequence[str]) -> dict[str, float]:
    """Times a step under the named settings; tokens/s by setting, without those skipped or failed."""
    known = {}
    for name in names:
        took = 45 if "loop" in name else 25
        if not bench.has(took, f"{kind}, batch {batch}, {name}"):
            continue
        config = paper("small", tiny=bench.tiny, **SETTINGS[name])
        what = {"setting": name}
        row = bench.row(f"{kind}, batch {batch}", what, step, bench, kind, config, batch)
        if "error" not in row:
            known[name] = row["tokens/s"]
    return known


def saving(bench: Bench) -> None:
    """The part "saving": the small size's teacher with moments and average."""
    bench.row("saving", {"state": "teacher, small"}, _to_disk_and_back, bench)


def _as_trained(state: TrainState) -> TrainState:
    """The state full of random numbers: the moments of a fresh one are zeros, which a store compresses."""
    rng = np.random.default_rng(0)

    def leaf(fresh: jax.Array) -> jax.Array:
        if not jnp.issubdtype(fresh.dtype, jnp.floating):
            return fresh
        values = rng.standard_normal(fresh.shape, np.float32).astype(fresh.dtype)
        return jax.device_put(values, fresh.sharding)

    filled: TrainState = jax.tree.map(leaf, state)
    return filled


def _to_disk_and_back(bench: Bench) -> BenchRow:
    config = paper("small", tiny=bench.tiny)
    denoiser = Denoiser(config.denoiser(TINY_VOCAB if bench.tiny else VOCAB))
    spec = StateSpec(config.teacher.train, make_mesh(MeshConfig(), jax.devices()[:1]))
    init = functools.partial(denoiser.init, jax.random.key(0))
    state = jax.block_until_ready(_as_trained(spec.init(init)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    with tempfile.TemporaryDirectory(dir=bench.folder) as folder, Checkpoints(folder) as store:
        _, held = timed(store.save, state)
        _, more = timed(store.wait)
        saved = held + more
        on_disk = sum(file.stat().st_size for file in as_path(folder).rglob("*") if file.is_file())
        _, read = timed(store.restore, spec.abstract(init))
    return {
        "GB": size,
        "on disk GB": on_disk / 1e9,
        "saving holds the loop s": held,
        "saved s": saved,
        "saved GB/s": size / saved,
        "restored s": read,
        "restored GB/s": size / read,
    }
