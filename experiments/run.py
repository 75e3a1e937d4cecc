"""Runs an experiment from raw text to a report, stage by stage, skipping finished stages.

  python -m experiments.run --config=experiments/configs/demo.py --workdir=runs/demo

Stages: data, teacher, judge, distill, evaluate, report; `--stages=distill,evaluate` runs only some
of them. Stop it at any moment (Ctrl-C) and repeat the command: it continues where it stopped. Any
field of the config can be given on the command line, for example
--config.distill.train.num_steps=100. With `--replay=teacher` (or judge, distill/2, or distill/2@57
for a step) no stage runs: one training step is taken twice, and the bits are compared.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from experiments.cli.app import check_flags, join_processes, run_app
from experiments.cli.fields import show_in_help
from experiments.cli.memory import keep_freed_memory
from experiments.settings import check_overrides, run_config
from experiments.stages.replay import replay
from experiments.stages.runner import STAGE_NAMES, open_run, run_stages
from sdtt_jax.config import choose, require
from sdtt_jax.paths import as_path

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run, local or gs://…; made if it is missing."
)
_STAGES = flags.DEFINE_list(
    "stages",
    [],
    f"Stages to run, separated by commas: {', '.join(STAGE_NAMES)}; all of them by default.",
)
_REPLAY = flags.DEFINE_string(
    "replay",
    None,
    "Stage of which one step is taken twice and compared: teacher, distill/2, distill/2@57.",
)
show_in_help("distributed", "compilation_cache")


def main(argv: Sequence[str]) -> None:
    """Runs the stages that the flags ask for."""
    check_flags(argv, "config", "workdir")
    require(
        not _STAGES.present or bool(_STAGES.value),
        f"--stages= names no stage; take some of {', '.join(STAGE_NAMES)}, or leave it out for all.",
    )
    stages = _STAGES.value or STAGE_NAMES
    for stage in stages:
        choose("--stages", stage, STAGE_NAMES)
    keep_freed_memory(run_config(_CONFIG.value).model)
    config_file = str(config_flags.get_config_filename(flags.FLAGS["config"]))
    join_processes()
    with open_run(_CONFIG.value, as_path(str(_WORKDIR.value)), config_file) as run:
        if _REPLAY.value is not None:
            replay(run, _REPLAY.value)
        else:
            run_stages(run, stages)


if __name__ == "__main__":
    run_app(main, check_overrides, goes_on=True)
