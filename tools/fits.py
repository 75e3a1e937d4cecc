"""Writes the table of which model sizes fit on which slices, from `launch.compile`'s search.

  python -m tools.fits --output=table.md

makes the table of docs/measurements/ahead.md and takes about a minute per cell on two cores (`--sizes` and
`--slices` choose cells); it needs the TPU compiler, as `launch.compile` does. With `--published` it gives the
memory of a step's state for published models, training adapters or all parameters, and compiles nothing:

  python -m tools.fits --published --slices=v5p:2x4x4,v5e:16x16,v6e:8x8,v5e:2x4,h100:8,h100:1
"""

import itertools
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.cli.app import check_flags, output_file, run_app, stopwatch
from experiments.configs.llada_8b import of_published
from experiments.configs.owt_small import SIZES, owt
from launch.ahead.search import DoesNotFitError, Target, meshes, search
from launch.ahead.topologies import Topology, compile_only, describe_devices, parse_topology
from sdtt_jax.config import changed, choose
from sdtt_jax.markdown import table
from sdtt_jax.networks.lora import LoraConfig

SLICES = {
    "v5e:2x4": "v5e-8",
    "v5e:16x16": "v5e-256",
    "v6e:16x16": "v6e-256",
    "v6e:8x8": "v6e-64",
    "v5p:2x4x4": "v5p-64, 32 chips",
    "v5p:8x8x8": "v5p-512 chips",
    "h100:8": "8 × H100",
    "h100:1": "one H100",
}
PAPER = ("v5e:2x4", "v5e:16x16", "v6e:16x16", "v5p:8x8x8", "h100:8")
PUBLISHED = ("GSAI-ML/LLaDA-8B-Base", "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1")
GB = 1e9

_SIZES = flags.DEFINE_list("sizes", list(SIZES), "Sizes of the paper.")
_SLICES = flags.DEFINE_list("slices", list(PAPER), "Topologies.")
_SECONDS = flags.DEFINE_integer(
    "seconds_per_cell", 100, "--search_seconds of launch.compile, for each cell."
)
_PUBLISHED = flags.DEFINE_bool(
    "published", False, "Show published models instead; nothing is compiled."
)
_OUTPUT = flags.DEFINE_string("output", None, "Also write the table to this Markdown file.")


MESH = "mesh (data × fsdp × model)"
PUBLISHED_COLUMNS = f"model|trained|slice|{MESH}|base|trained, five times|together, GB".split("|")
COLUMNS = (
    f"size|slice|{MESH}|sequences per chip|peak GB|exchanged GB|ms per step|Mtokens/s at best"
).split("|")


def row(target: Target, size: str, seconds: float, log: Any) -> list[str]:
    """The cells of the best distillation step of a size on a slice."""
    name = SLICES.get(str(target.topology), str(target.topology))
    try:
        record = search(target, seconds, log)[0]
    except DoesNotFitError:
        return [size, name, "does not fit", *[""] * 5]
    predicted = record["predicted"]
    network = sum(entry["bytes"] for entry in record["collectives"]) / GB
    return [
        size,
        name,
        " × ".join(str(n) for n in record["mesh"].values()),
        f"{record['batch_per_chip']:g}",
        f"{record['peak_bytes'] / GB:.1f} of {record['usable_bytes'] / GB:.1f}",
        f"{network:.2f}",
        f"{predicted['seconds'] * 1e3:.0f}–{predicted['seconds_without_overlap'] * 1e3:.0f}",
        f"{predicted['tokens_per_second'] / 1e6:.1f}",
    ]


def published_row(
    name: str, topology: Topology, devices: Sequence[Any], *, adapted: bool
) -> list[str]:
    """The cells of a published model, on the mesh that splits its state least among those with room."""
    config = of_published(name)
    if not adapted:
        config = changed(config, distill={"lora": LoraConfig()})
    trained = "adapters" if adapted else "all parameters"
    start = [name.partition("/")[2], trained, SLICES.get(str(topology), str(topology))]
    found = next(meshes("distill", config, topology, devices), None)
    if found is None:
        return [*start, "does not fit", *[""] * 3]
    mesh, state = found
    total, base = sum(state.values()), state.get("base", 0)
    together = f"{total / GB:.2f} of {topology.chip.usable / GB:.1f}"
    shape = " × ".join(map(str, mesh.shape.values()))
    return [*start, shape, f"{base / GB:.2f}", f"{(total - base) / GB:.2f}", together]


def main(argv: Sequence[str]) -> None:
    """Searches cell by cell."""
    check_flags(argv)
    for size in _SIZES.value:
        choose("--sizes", size, SIZES)
    output = output_file(_OUTPUT.value)
    compile_only()
    log = stopwatch()
    topologies = [parse_topology(name) for name in _SLICES.value]
    # Virtual devices first, the largest slice of them first: their number is fixed once any device is used.
    order = sorted(topologies, key=lambda one: (not one.stand_in, -one.chips))
    devices = {str(topology): describe_devices(topology) for topology in order}
    columns = PUBLISHED_COLUMNS if _PUBLISHED.value else COLUMNS
    rows: list[list[str]] = []
    for topology in topologies:
        there = devices[str(topology)]
        if _PUBLISHED.value:
            rows += [
                published_row(name, topology, there, adapted=adapted)
                for name, adapted in itertools.product(PUBLISHED, (True, False))
            ]
        else:
            targets = {size: Target("distill", owt(size), topology, there) for size in _SIZES.value}
            rows += [row(target, size, _SECONDS.value, log) for size, target in targets.items()]
        if output is not None:
            output.write_text(table(columns, rows) + "\n", encoding="utf-8")
    print(table(columns, rows))


if __name__ == "__main__":
    run_app(main, cache=False)
