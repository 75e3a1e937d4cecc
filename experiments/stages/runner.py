"""Runs the stages: their table, and opening a run's directory."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.cli.overrides import UNKNOWN, Source
from experiments.distillers import COUPLED
from experiments.settings import run_config
from experiments.stages import adoption, evaluation, training
from experiments.stages.context import Run, missing
from experiments.stages.workdir import (
    Workdir,
    claimed_workdir,
    is_delivered,
    lock,
    read_json,
    timed,
    write_json,
)
from sdtt_jax.checkpoints.place import Place
from sdtt_jax.config import to_mapping
from sdtt_jax.errors import UserError
from sdtt_jax.keys import generator
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import make_mesh
from sdtt_jax.reporting import write_report
from sdtt_jax.reporting.findings import find
from sdtt_jax.reporting.record import read_run
from sdtt_jax.reporting.report import render
from sdtt_jax.version import __version__


class Stage(NamedTuple):
    """A stage of a run."""

    name: str  # what the command line, metrics and results call it
    title: str  # what it does, for the log
    run: Callable[[Run], None]  # runs it, or continues where it was stopped
    is_finished: Callable[[Run], bool]  # whether nothing is left to do


def _data(run: Run) -> None:
    info = run.info
    if info.files:
        run.log(f"  {run.config.data.corpus}: {info.files}")
    run.log(
        f"  {info.num_characters:,} characters, {info.vocab_size} tokens, {info.num_train:,} sequences of "
        f"{info.length} to train on, {info.num_validation:,} held out"
    )
    if info.num_unknown:
        drops = f", or dropped by normalize={run.config.data.normalize}"
        drops = "" if run.config.data.normalize == "none" else drops
        run.log(f"  {info.num_unknown:,} characters or tokens are unknown to the vocabulary{drops}")
    # Checked before a teacher is trained and left in the directory of an impossible config.
    adoption.check_vocabulary(run)
    if COUPLED in run.config.distillers:
        run.config.coupled.check_vocabulary(info.vocab_size)


def _report(run: Run) -> None:
    results, timing = run.workdir.results, run.workdir.timing
    if results.exists() and timing.exists():
        write_json(results, read_json(results) | {"timing": read_json(timing)})
    processes.on_first("Writing the report", lambda: write_report(run.workdir.root))


def _say_report(run: Run) -> None:
    """Logs the report's headline, and where it is."""
    what, root = "Reading the report", run.workdir.root
    run.log(f"  {processes.on_first(what, lambda: find(read_run(root)).headline)}")
    run.log(f"  {run.workdir.report}")


def _is_reported(run: Run) -> bool:
    """Whether the page shows what the run has now: it is drawn again, since times of files may be wrong."""
    page = run.workdir.report

    def same() -> bool:
        return page.exists() and page.read_bytes() == render(read_run(run.workdir.root)).encode()

    return processes.agree(bool(processes.on_first("Reading the report", same)))


STAGES = (
    # This stage never counts as finished: opening prepared data is quick.
    Stage("data", "text to tokens", _data, lambda _run: False),
    Stage(
        "teacher",
        "training the masked diffusion model",
        training.train_teacher,
        lambda run: is_delivered(run.workdir.teacher),
    ),
    Stage(
        "judge",
        "training the causal model, baseline and judge",
        training.train_judge,
        training.is_judged,
    ),
    Stage(
        "distill",
        "fewer steps, round by round",
        lambda run: training.distill(run, run.config.distillers),
        lambda run: training.is_distilled(run, run.config.distillers),
    ),
    Stage("evaluate", "sampling and measuring", evaluation.evaluate, evaluation.is_evaluated),
    Stage("report", "one page", _report, _is_reported),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)


def turns(run: Run, names: Sequence[str]) -> list[Stage]:
    """The named stages in the order in which they run.

    With several distillers, the first is evaluated and reported before the others begin, because a report
    after half of the time is worth the seconds that it takes.
    """
    stages = [stage for stage in STAGES if stage.name in names]
    first, *others = run.config.distillers or ("",)
    begun = any(run.workdir.round(1, name).exists() for name in others)
    if not {"distill", "report"} <= {*names} or not others or processes.agree(begun):
        return stages
    place = next(i for i, stage in enumerate(stages) if stage.name == "distill")
    distill, *after = stages[place:]
    distill = distill._replace(
        run=lambda run: training.distill(run, [first]),
        is_finished=lambda run: training.is_distilled(run, [first]),
    )
    return [*stages[:place], distill, *after, *stages[place:]]


def run_stages(run: Run, names: Sequence[str] = STAGE_NAMES) -> None:
    """Runs the named stages that are not finished yet, in the order of `STAGES`."""
    training.check_found_elsewhere(run, names)
    _check_delivered_before(run, names)
    if "data" not in names and run.is_prepared:
        training.check_networks(run, names)
    for stage in turns(run, names):
        run.check_place()
        if stage.is_finished(run):
            run.log(f"{stage.name}: finished before")
        else:
            processes.stop_if_preempted()
            run.log(f"{stage.name}: {stage.title}")
            with timed(run.workdir, stage.name, run.place):
                stage.run(run)
            if stage.name == "data":
                training.check_networks(run, names)
        if stage.name == "report":
            _say_report(run)


def _check_delivered_before(run: Run, names: Sequence[str]) -> None:
    """Raises `UserError`, before any work, if stages not named have yet to deliver what others need."""
    config, where = run.config, run.workdir
    needs = {"evaluate": {"judge": where.judge, "teacher": where.teacher}}
    rounds = [where.round(1, name) for name in config.distillers]
    # Rounds that have begun continue from their own checkpoints.
    if not processes.agree(any(folder.exists() for folder in rounds)):
        needs["distill"] = {"teacher": where.teacher}
    for stage in STAGES:
        if stage.name not in names or stage.name not in needs:
            continue
        lacking = [
            folder
            for name, folder in needs[stage.name].items()
            if name not in names and not is_delivered(folder)
        ]
        if lacking and not stage.is_finished(run):
            raise missing(lacking[0], stage.name)


@contextlib.contextmanager
def open_run(config: Any, root: Path, source: Source = UNKNOWN) -> Iterator[Run]:
    """Validates the config, locks and claims the directory (made if missing), makes the mesh.

    The config is what a config file returns, or the same as a mapping.

    Raises:
      ConfigError: a field is wrong or differs between processes, or the directory holds another run.
      UserError: another process uses the directory, or not all processes see it.
    """
    validated = run_config(config)
    processes.require_same(
        "The config",
        {
            "config": to_mapping(validated),
            "sdtt_jax": __version__,
            "jax": jax.__version__,
            "random numbers": generator(),
        },
        "give all processes the same command, config file, version and environment",
    )
    mesh = make_mesh(validated.mesh)
    with contextlib.ExitStack() as stack:

        def open_workdir() -> None:
            stack.enter_context(lock(root))
            stack.enter_context(claimed_workdir(root, validated, source))

        processes.on_first("Opening --workdir", open_workdir)
        workdir = Workdir(root)
        if not workdir.config.exists():
            raise UserError(
                f"Process {jax.process_index()} does not see {workdir.config}, which process 0 wrote: "
                "--workdir must lie on a file system that all processes share."
            )
        place = stack.enter_context(contextlib.closing(Place(root)))
        yield Run(validated, workdir, mesh, place=place)
