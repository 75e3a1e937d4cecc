"""Runs an experiment from raw text to a report, stage by stage, skipping finished stages.

  python -m experiments.run --config=experiments/configs/demo.py --workdir=runs/demo

Stages: data, teacher, judge, distill, evaluate, report; `--stages=distill,evaluate` runs only some
of them. Stop it at any moment (Ctrl-C) and repeat the command: it continues where it stopped. Any
field of the config can be given on the command line, for example
--config.distill.num_rounds=3. With `--replay=teacher` (or judge, distill/2, or distill/2@57
for a step) no stage runs: one training step is taken twice, and the bits are compared.
"""

from collections.abc import Sequence

from absl import flags

from experiments.cli.app import check_flags, join_processes, run_app
from experiments.cli.fields import show_in_help
from experiments.cli.memory import keep_freed_memory
from experiments.cli.overrides import source_of
from experiments.cli.run_flags import chosen_stages, define_flags
from experiments.settings import check_overrides, run_config
from experiments.stages.replay import replay
from experiments.stages.runner import open_run, run_stages
from sdtt_jax.paths import as_path

define_flags()
show_in_help("distributed", "compilation_cache")


def main(argv: Sequence[str]) -> None:
    """Runs the stages that the flags ask for."""
    check_flags(argv, "config", "workdir")
    given, stages = flags.FLAGS, chosen_stages()
    keep_freed_memory(run_config(given.config).model)
    join_processes()
    with open_run(given.config, as_path(str(given.workdir)), source_of()) as run:
        if given.replay is not None:
            replay(run, given.replay)
        else:
            run_stages(run, stages)


if __name__ == "__main__":
    run_app(main, check_overrides, resumes=True)
