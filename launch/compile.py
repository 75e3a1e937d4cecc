"""Compiles a run's programs for a slice that need not exist: memory, speed, and what limits it.

  python -m launch.compile --config=experiments/configs/owt_small.py --topology=v5e:16x16 \\
      --batch_per_chip=32

compiles the real distillation step, teacher step (if a teacher is trained) and sampler with the TPU
compiler, which needs no TPU (pip install -e '.[tpu]'). `--programs=distill` compiles only that one;
`coupled`, `mixture`, `mmd`, `idlm`, `coupled_idlm` and `alpha` are the steps of the other
distillers. It prints for each chip: memory by part, FLOPs, traffic (with `--by_operation`, which
source operations cause it), collectives by kind and mesh axis, and the time that a roofline of the
chip's published peak numbers predicts. The mesh is config.mesh; --config.mesh.fsdp=16 and the like
change it. `--search` finds the best mesh and the largest batch per chip instead. For h100:8, XLA's
CPU compiler compiles for eight virtual devices, so the memory figures are only indications.
"""

from collections.abc import Sequence

from absl import flags

from experiments.cli.app import check_flags, output_file, refuse, run_app, stopwatch, wide_console
from experiments.cli.overrides import define_config_file
from experiments.settings import check_overrides, run_config
from launch.ahead import report
from launch.ahead.analysis import Record, analyse
from launch.ahead.programs import ALL, build, check_kinds, kinds_of
from launch.ahead.search import Target, search
from launch.ahead.topologies import (
    compile_only,
    describe_devices,
    mesh_of_devices,
    parse_topology,
)
from sdtt_jax.config import choose

_CONFIG = define_config_file()
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "The slice to compile for, CHIP:SIDES: v5e:2x4, v5e:16x16, v6e:16x16, v5p:8x8x8, h100:8.",
)
_SLICES = flags.DEFINE_integer(
    "slices", 1, "Number of slices, connected by the data-centre network.", lower_bound=1
)
_BATCH = flags.DEFINE_integer("batch_per_chip", 32, "Sequences per chip.", lower_bound=1)
_PROGRAMS = flags.DEFINE_list(
    "programs",
    None,
    f"Programs to compile, separated by commas: {', '.join(ALL)}; by default the first three, without "
    "the teacher's step if the teacher is loaded.",
)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 16, "Sampling steps.", lower_bound=1)
_BY_OPERATION = flags.DEFINE_bool(
    "by_operation", False, "Also show how many bytes each operation of the source moves."
)
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch per chip and the best mesh.")
_SEARCH_SECONDS = flags.DEFINE_integer(
    "search_seconds",
    120,
    "Seconds after which the search starts no new compilation, once it has found a batch that fits.",
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Also write everything to this file, as JSON, program by program."
)


def main(argv: Sequence[str]) -> None:
    """Compiles what the flags ask for."""
    check_flags(argv, "config", "topology")
    asked = [kind.strip() for kind in _PROGRAMS.value or ()]
    for kind in asked:
        choose("--programs", kind, ALL)
    if _SEARCH.value:
        mesh_flags = [name for name in flags.FLAGS if name.startswith("config.mesh.")]
        refuse("--search finds the batch per chip", "batch_per_chip")
        refuse("--search finds the mesh", *mesh_flags)
    else:
        refuse("Nothing is searched without --search", "search_seconds")
    config = run_config(_CONFIG.value)
    kinds = asked or kinds_of(config)
    check_kinds(kinds, config)
    output = output_file(_OUTPUT.value)
    compile_only()
    topology = parse_topology(str(_TOPOLOGY.value), _SLICES.value)
    devices = describe_devices(topology)
    log = stopwatch()
    console = wide_console(markup=True)

    def find(kind: str) -> list[Record]:
        if _SEARCH.value:
            target = Target(kind, config, topology, devices, _NUM_STEPS.value)
            return search(target, _SEARCH_SECONDS.value, log)
        mesh = mesh_of_devices(config.mesh, topology, devices)
        program = build(kind, config, mesh, _BATCH.value * topology.chips, _NUM_STEPS.value)
        log(f"{kind}: compiling")
        return [analyse(program, topology, mesh)]

    by_operation = _BY_OPERATION.value
    records = report.publish(map(find, kinds), console, output, by_operation=by_operation)
    if output is not None:
        log(f"written to {output}")
    console.print(report.summary(records))


if __name__ == "__main__":
    # Compiling is what is measured here.
    run_app(main, check_overrides, cache=False)
