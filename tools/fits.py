"""Writes the table of what fits where: the paper's sizes on common slices, from `launch.compile`'s search.

  python -m tools.fits --output=docs/measurements/fits.md

takes about a minute per cell on two cores (`--sizes` and `--slices` for some of them); needs the TPU
compiler like `launch.compile`.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.cli.app import check_flags, output_file, run_app, stopwatch
from experiments.configs.owt_small import SIZES, owt
from launch.ahead.analysis import Record
from launch.ahead.search import search
from launch.ahead.topologies import compile_only, describe_devices, parse_topology
from sdtt_jax.config import choose
from sdtt_jax.errors import ConfigError

SLICES = {
    "v5e:2x4": "v5e-8",
    "v5e:16x16": "v5e-256",
    "v6e:16x16": "v6e-256",
    "v5p:8x8x8": "v5p-512 chips",
    "h100:8": "8 × H100",
}
GB = 1e9

_SIZES = flags.DEFINE_list("sizes", list(SIZES), "Sizes of the paper.")
_SLICES = flags.DEFINE_list("slices", list(SLICES), "Topologies.")
_SECONDS = flags.DEFINE_integer("seconds_per_cell", 100, "As --search_seconds of launch.compile.")
_OUTPUT = flags.DEFINE_string("output", None, "Write the table to this Markdown file too.")


def cell(size: str, topology_name: str, seconds: float, log: Any) -> Record | None:
    """The best distillation step of a size on a slice, or None if none fits."""
    topology = parse_topology(topology_name)
    devices = describe_devices(topology)
    try:
        return search("distill", owt(size), topology, devices, 16, log, seconds)[0].record
    except ConfigError:
        return None


def row(size: str, topology_name: str, record: Record | None) -> str:
    """A line of the Markdown table."""
    name = SLICES.get(topology_name, topology_name)
    if record is None:
        return f"| {size} | {name} | does not fit | | | | | |"
    predicted = record["predicted"]
    mesh = " × ".join(str(n) for n in record["mesh"].values())
    network = sum(entry["bytes"] for entry in record["collectives"]) / GB
    return (
        f"| {size} | {name} | {mesh} | {record['batch_per_chip']:g} | "
        f"{record['peak_bytes'] / GB:.1f} of {record['usable_bytes'] / GB:.1f} | {network:.2f} | "
        f"{predicted['seconds'] * 1e3:.0f}–{predicted['seconds_without_overlap'] * 1e3:.0f} | "
        f"{predicted['tokens_per_second'] / 1e6:.1f} |"
    )


COLUMNS = (
    "size",
    "slice",
    "mesh (data × fsdp × model)",
    "sequences per chip",
    "peak GB",
    "exchanged GB",
    "ms per step",
    "Mtokens/s at best",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def main(argv: Sequence[str]) -> None:
    """Searches cell by cell."""
    check_flags(argv)
    for size in _SIZES.value:
        choose("--sizes", size, SIZES)
    output = output_file(_OUTPUT.value)
    compile_only()
    log = stopwatch()
    lines = [HEADER]
    for topology_name in _SLICES.value:
        for size in _SIZES.value:
            lines.append(row(size, topology_name, cell(size, topology_name, _SECONDS.value, log)))
            print(lines[-1], flush=True)
            if output is not None:
                output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_app(main, cache=False)
