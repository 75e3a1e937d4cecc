"""Runs an experiment from raw text to a report, stage by stage, each finished stage skipped.

  python -m experiments.run --config=experiments/configs/demo.py --workdir=runs/demo

Stages: data, teacher, judge, distill, evaluate, report. Stop it at any moment (Ctrl-C) and repeat the
command: it goes on where it was. Any field of the config can be given on the command line, for example
--config.distill.train.num_steps=100; `--stages=distill,evaluate` runs some stages only. `--replay=teacher`
(or judge, distill/2, or distill/2@57 for a step) takes a training step twice instead, and compares the bits.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import jax
from absl import flags
from ml_collections import config_flags

from experiments.cli.app import join_processes, run_app
from experiments.settings import check_overrides, run_config
from experiments.stages import evaluation as evaluation_stage
from experiments.stages import training as training_stages
from experiments.stages.context import Run
from experiments.stages.replay import replay
from experiments.stages.workdir import Workdir, claim, is_delivered, lock, timed
from sdtt_jax.config import choose
from sdtt_jax.errors import ConfigError, UserError
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import make_mesh
from sdtt_jax.paths import as_path, modified
from sdtt_jax.reporting import write_report

STAGES = ("data", "teacher", "judge", "distill", "evaluate", "report")

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run, local or gs://…; made if it is missing."
)
_STAGES = flags.DEFINE_list(
    "stages", [], f"Stages to run, of: {', '.join(STAGES)}. All of them by default."
)
_REPLAY = flags.DEFINE_string(
    "replay", None, "Take a step of this stage twice and compare: teacher, distill/2, distill/2@57."
)
# Defined elsewhere; --help shows a module's own flags and those that it declares.
for _name in ("distributed", "compilation_cache"):
    flags.declare_key_flag(_name)


def run_stages(run: Run, stages: Sequence[str]) -> None:
    """Runs the stages that are not finished yet, in order."""
    for stage in STAGES:
        if stage not in stages:
            continue
        if _is_finished(run, stage):
            run.say(f"{stage}: finished before")
            continue
        processes.stop_if_preempted()
        run.say(f"{stage}: {_DESCRIPTIONS[stage]}")
        with timed(run.workdir, stage):
            _RUNNERS[stage](run)


def _data(run: Run) -> None:
    info = run.info
    run.say(
        f"  {info.num_characters:,} characters, {info.vocab_size} tokens, {info.num_train:,} sequences of "
        f"{info.length} to train on, {info.num_validation:,} held out"
    )


def _report(run: Run) -> None:
    evaluation_stage.add_timing(run)
    page = processes.on_first("Writing the report", lambda: write_report(run.workdir.root))
    run.say(f"  {page}")


_DESCRIPTIONS = {
    "data": "text to tokens",
    "teacher": "training the masked diffusion model",
    "judge": "training the autoregressive baseline and scorer",
    "distill": "fewer steps, round by round",
    "evaluate": "sampling and measuring",
    "report": "one page",
}
_RUNNERS: dict[str, Callable[[Run], None]] = {
    "data": _data,
    "teacher": training_stages.train_teacher,
    "judge": training_stages.train_judge,
    "distill": training_stages.distill,
    "evaluate": evaluation_stage.evaluate,
    "report": _report,
}


def _is_finished(run: Run, stage: str) -> bool:
    workdir = run.workdir
    if stage == "teacher":
        return is_delivered(workdir.teacher)
    if stage == "judge":
        return is_delivered(workdir.judge)
    if stage == "distill":
        last = run.config.distill.num_rounds
        return is_delivered(workdir.round(last))
    if stage == "evaluate":
        return processes.agree(evaluation_stage.is_evaluated(run))
    if stage == "report":
        inputs = [workdir.results, workdir.samples, workdir.metrics]
        return processes.agree(
            workdir.report.exists()
            and all(p.exists() and modified(p) <= modified(workdir.report) for p in inputs)
        )
    return False


@contextlib.contextmanager
def open_run(config: object, root: Path, config_file: str = "") -> Iterator[Run]:
    """Validates the config, locks and claims the directory, makes the mesh."""
    validated = run_config(config)  # type: ignore[arg-type]
    mesh = make_mesh(validated.mesh)
    with contextlib.ExitStack() as stack:

        def open_workdir() -> None:
            stack.enter_context(lock(root))
            claim(root, validated, config_file)

        processes.on_first("Opening --workdir", open_workdir)
        workdir = Workdir(root)
        if not workdir.config.exists():
            raise UserError(
                f"Process {jax.process_index()} does not see {workdir.config}, which process 0 wrote: "
                "--workdir must lie on a file system that all processes share."
            )
        yield Run(validated, workdir, mesh)


def _stop_on_sigterm() -> None:
    """Outside of a training, which has its own handler, SIGTERM ends a process as Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt

    # With several processes it is JAX that listens, see `processes.preempted`.
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, stop)


def main(argv: Sequence[str]) -> None:
    """Runs the stages that the flags ask for."""
    if len(argv) > 1:
        raise ConfigError(f"Unknown argument {argv[1]!r}; see --help.")
    for name in ("config", "workdir"):
        if flags.FLAGS[name].value is None:
            raise ConfigError(f"--{name} is missing; see --help.")
    stages = _STAGES.value or list(STAGES)
    for stage in stages:
        choose("--stages", stage, STAGES)
    config_file = str(config_flags.get_config_filename(flags.FLAGS["config"]))
    join_processes()
    _stop_on_sigterm()
    with open_run(_CONFIG.value, as_path(str(_WORKDIR.value)), config_file) as run:
        if _REPLAY.value is not None:
            replay(run, _REPLAY.value)
        else:
            run_stages(run, stages)


if __name__ == "__main__":
    run_app(main, check_overrides)
