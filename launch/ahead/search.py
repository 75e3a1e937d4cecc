"""Finds the best mesh of a slice and the largest batch per chip in few compilations."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from experiments.settings import RunConfig
from launch.ahead.analysis import Record, analyse
from launch.ahead.programs import build, least_batch, state_of
from launch.ahead.topologies import Topology, mesh_of_devices
from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel.mesh import MeshConfig

# Batches per chip that are tried: powers of two and the values half-way between keep matmul shapes even.
LADDER = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
FIRST = 8
COMPILATIONS = 4
# Meshes whose state leaves less of the memory than this are not worth a compilation.
ROOM = 0.1
MESHES = 2

Log = Callable[[str], None]


class DoesNotFitError(ConfigError):
    """A program for which a slice is too small, whatever the mesh and the batch."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A program of a run, and the slice that it is compiled for."""

    kind: str  # one of `launch.ahead.programs.ALL`
    config: RunConfig
    topology: Topology
    devices: Sequence[Any]  # the topology's devices
    num_steps: int = 16  # steps of the sampler


def meshes(
    kind: str, config: RunConfig, topology: Topology, devices: Sequence[Any]
) -> Iterator[tuple[Mesh, dict[str, float]]]:
    """Meshes on which a program's state fits, the least communication first; each with `state_of` it.

    Parameters are replicated, or split over whole dimensions of the torus; tensor parallelism, which
    communicates within every layer, is tried only if the state fits in no other way.

    Raises:
      ConfigError: a config that is wrong on any mesh.
    """
    count, any_fits = topology.chips, False
    splits = sorted({math.prod(topology.sides[:k]) for k in range(len(topology.sides) + 1)})
    for model in (1, 2, 4, 8):
        for fsdp in splits:
            if count % (fsdp * model):
                continue
            try:
                mesh = mesh_of_devices(MeshConfig(-1, fsdp, model), topology, devices)
                state = state_of(kind, config, mesh)
            except ConfigError:
                # On a mesh that splits nothing of the model, the config is at fault.
                if fsdp * model == 1:
                    raise
                continue  # a size of the model that this mesh does not divide
            if sum(state.values()) < (1 - ROOM) * topology.chip.usable:
                any_fits = True
                yield mesh, state
        if any_fits:
            return


def search(target: Target, seconds: float, log: Log) -> list[Record]:
    """Analyses of the largest batch on each mesh that was tried, the best first.

    The best takes the least time per token if nothing overlaps: with perfect overlap most meshes would be
    equal, bound by computing.

    After `seconds` no further compilation begins, once a batch that fits is known.

    Raises:
      DoesNotFitError: on no mesh does the state fit, or a batch with it.
      ConfigError: a config that is wrong on any mesh.
    """
    began = time.monotonic()
    analyses: list[Record] = []
    least: list[int] = []  # the smallest batch per chip on each mesh that was tried

    def in_time() -> bool:
        return not analyses or time.monotonic() - began < seconds

    possible = meshes(target.kind, target.config, target.topology, target.devices)
    for mesh, _ in itertools.islice(possible, MESHES):
        if not in_time():
            break
        least += batches_on(target, mesh)[:1]
        best = largest_batch(target, mesh, log, in_time)
        if best is not None:
            analyses.append(best)
    if not analyses and least:
        raise DoesNotFitError(
            f"{target.kind} does not fit on {target.topology} with {min(least)} sequences per chip, the "
            "fewest that its microbatches allow; take a larger slice, fewer microbatches or a smaller "
            "config.model."
        )
    if not analyses:
        mesh = mesh_of_devices(MeshConfig(), target.topology, target.devices)
        whole = state_of(target.kind, target.config, mesh)
        parts = ", ".join(name for name, size in whole.items() if size)
        raise DoesNotFitError(
            f"The state of {target.kind} ({parts}) does not fit on {target.topology} with any mesh; take a "
            "larger slice, or a smaller config.model."
        )
    return sorted(analyses, key=_seconds_per_token)


def largest_batch(
    target: Target, mesh: Mesh, log: Log, in_time: Callable[[], bool]
) -> Record | None:
    """The analysis at the largest batch per chip of `ladder` that fits in the time; None if none does."""
    tried: dict[int, Record] = {}
    topology = target.topology
    batches = batches_on(target, mesh)
    guess: int | None = min(batches, key=lambda batch: abs(batch - FIRST))
    while guess is not None and len(tried) < COMPILATIONS and (in_time() or not _fitting(tried)):
        shape = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        log(f"{target.kind} on {topology}, mesh {shape}, {guess} sequences per chip: compiling")
        batch = guess * topology.chips
        program = build(target.kind, target.config, mesh, batch, target.num_steps)
        tried[guess] = analyse(program, topology, mesh)
        guess = next_guess(
            {batch: a["peak_bytes"] for batch, a in tried.items()},
            sum(next(iter(tried.values()))["state_bytes"].values()),
            topology.chip.usable,
            batches,
        )
    fitting = _fitting(tried)
    return tried[max(fitting)] if fitting else None


def batches_on(target: Target, mesh: Mesh) -> tuple[int, ...]:
    """The `ladder` of a program on a mesh of its slice."""
    return ladder(least_batch(target.kind, target.config, mesh), target.topology.chips)


def ladder(least: int, chips: int) -> tuple[int, ...]:
    """Batches per chip to try, ascending: those of `LADDER` and its multiples that, over all `chips`, are
    multiples of `least`, as the program needs."""
    step = least // math.gcd(least, chips)
    multiples = {step * b for b in LADDER if step * b <= max(step, LADDER[-1])}
    return tuple(sorted(multiples | {b for b in LADDER if b % step == 0}))


def next_guess(
    peaks: dict[int, float], state: float, usable: float, batches: Sequence[int] = LADDER
) -> int | None:
    """The batch to try next, or None when the largest that fits is known.

    Args:
      peaks: batch per chip -> peak bytes, for the batches tried so far.
      state: bytes that do not depend on the batch.
      usable: bytes that a program may use of a chip.
      batches: those that may be tried, ascending.
    """
    low = max((b for b, peak in peaks.items() if peak <= usable), default=0)
    high = min((b for b, peak in peaks.items() if peak > usable), default=batches[-1] + 1)
    between = [b for b in batches if low < b < high]
    if not between:
        return None
    (b1, p1), (b2, p2) = (0, state), max(peaks.items())
    if len(peaks) > 1:
        (b1, p1), (b2, p2) = sorted(peaks.items())[-2:]
    slope = max((p2 - p1) / (b2 - b1), 1e-9)
    estimate = b2 + (usable - p2) / slope
    below = [b for b in between if b <= estimate]
    return below[-1] if below else between[0]


def _seconds_per_token(analysis: Record) -> float:
    predicted = analysis["predicted"]
    tokens: float = predicted["tokens_per_second"] * predicted["seconds"]
    return float(predicted["seconds_without_overlap"]) / tokens


def _fitting(tried: dict[int, Record]) -> list[int]:
    return [batch for batch, analysis in tried.items() if analysis["fits"]]
