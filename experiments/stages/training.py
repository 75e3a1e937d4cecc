"""The stages that train: teacher, judge, and the rounds of every distiller, all through the one loop."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.settings import COUPLED, SDTT, RunConfig
from experiments.stages import coupled
from experiments.stages.adopting import adopt_teacher, base_objective
from experiments.stages.context import Run
from experiments.stages.workdir import final, is_delivered
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.distillation.rounds import Student, Trained, delivered_params, next_round, round_dt
from sdtt_jax.keys import purpose_key, purpose_seed
from sdtt_jax.objectives import (
    distill_loss,
    judge_loss,
    teacher_loss,
)
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import check_batch_size
from sdtt_jax.parallel.placement import place_batch, place_rows, unbox
from sdtt_jax.paths import write_text
from sdtt_jax.progress import make_progress
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.loop import TrainLog, train
from sdtt_jax.training.metrics import MetricsWriter
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import LossFn, TrainStep, make_train_step
from sdtt_jax.training.watchdog import watchdog


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """One training of a run: a stage, or a round of distillation.

    Attributes:
      run: what it is a part of.
      stage, round: `teacher` 0, `judge` 0, `distill` 1, 2, …, `coupled` 1, 2, …
      config: steps, batch, optimizer.
      step_fn: the compiled step.
      start: makes the state to begin with.
      abstract: shapes and shardings of the state.
      pool: of trajectories, where they and not texts are trained on.
      open_share: of a network that was causal, the share of its attention to later positions at a step.
    """

    run: Run
    stage: str
    round: int
    config: TrainConfig
    step_fn: TrainStep
    start: Callable[[], TrainState]
    abstract: TrainState
    pool: coupled.Pool | None = None
    open_share: Callable[[int], float] | None = None

    @property
    def tags(self) -> dict[str, Any]:
        """What names it in metrics and messages."""
        return {"stage": self.stage, "round": self.round}

    @property
    def folder(self) -> Path:
        """Where its checkpoints are."""
        workdir = self.run.workdir
        folders = {"teacher": workdir.teacher, "judge": workdir.judge}
        if not self.round:
            return folders[self.stage]
        return workdir.round(self.round, COUPLED if self.stage == COUPLED else SDTT)

    @property
    def key(self) -> jax.Array:
        """The key that the training's steps fold their number into."""
        return purpose_key(self.run.config.seed, self.stage, self.round)

    @property
    def data_seed(self) -> int:
        """Of the stage's stream of batches."""
        return purpose_seed(self.run.config.seed, f"{self.stage}.data")

    @property
    def metadata(self) -> dict[str, Any]:
        """Stored with the checkpoints and compared on reading: what the state depends on beyond the config,
        which `claim` compares."""
        # Which bits a key gives depends on its implementation, and for threefry on this flag of JAX's.
        random = str(self.key.dtype)
        if getattr(jax.config, "jax_threefry_partitionable", True):
            random += ", partitionable"
        pool = {} if self.pool is None else {"pool": self.pool.facts}
        return self.tags | {"data": self.run.info.fingerprint, "random": random} | pool

    def batch_number(self, step: int) -> int:
        """The number, in the stage's stream of batches, of the batch that step `step` (from 0) takes."""
        # Rounds go on in the data where the one before them ended.
        return max(self.round - 1, 0) * self.config.num_steps + step

    def batch_at(self, step: int) -> Any:
        """The batch of a step (from 0), on the mesh: `[batch, length]` int32, or what a pool gives."""
        size, number = self.config.batch_size, self.batch_number(step)
        if self.pool is not None:
            return self.pool.batch(self.data_seed, number, size, self.run.mesh)
        rows = functools.partial(self.run.train_split.batch, self.data_seed, number, size)
        tokens = place_rows(rows, (size, self.run.config.data.length), self.run.mesh)
        if self.open_share is None:
            return tokens
        share = np.full(size, self.open_share(step), np.float32)
        return {"tokens": tokens, "open": place_batch(share, self.run.mesh)}


def training_job(run: Run, stage: str, number: int = 0) -> TrainingJob:
    """The training of a stage or round."""
    if stage == "teacher" and run.base is not None:
        return _from_base(run)
    if stage == "teacher":
        loss = teacher_loss(run.diffusion, run.config.teacher)
        config = run.config.teacher.train
        return _from_scratch(run, stage, run.denoiser, loss, config)
    if stage == "judge":
        loss = judge_loss(run.judge, run.tokenizer.bos_id)
        config = run.config.judge.train
        return _from_scratch(run, stage, run.judge, loss, config)
    distiller = next(d for d in DISTILLERS.values() if d.stage == stage)
    return distiller.job(run, number, distiller.steps(run)(number))


def train_teacher(run: Run) -> None:
    """Trains the masked diffusion model that the first round distils."""
    config = run.config.teacher
    if config.checkpoint:
        adopt_teacher(run, config.checkpoint)
        return
    state = _fit(training_job(run, "teacher"))
    run.deliver(run.workdir.teacher, run.denoiser, _averaged(state), stage="teacher")


def train_judge(run: Run) -> None:
    """Trains the causal model that is baseline and judge."""
    state = _fit(training_job(run, "judge"))
    run.deliver(run.workdir.judge, run.judge, _averaged(state), stage="judge")


class Distiller(NamedTuple):
    """A way to distil: what its rounds are, and what each trains and delivers.

    Attributes:
      stage: what metrics and checkpoints call it.
      rounds: how many the config asks for.
      steps: makes what makes the compiled training step of a round; SDTT's is one for all rounds.
      job: a round's training, with all that it needs beside the student.
      deliver: writes what a trained round delivers.
      told: a line about a round, for the person who watches.
    """

    stage: str
    rounds: Callable[[RunConfig], int]
    steps: Callable[[Run], Callable[[int], TrainStep]]
    job: Callable[[Run, int, TrainStep], TrainingJob]
    deliver: Callable[[Run, int, TrainState], None]
    told: Callable[[RunConfig, int], str]


def distill(run: Run) -> None:
    """All rounds of every distiller: the student of each is the next teacher."""
    for name in run.config.distillers:
        distiller = DISTILLERS[name]
        step, rounds = distiller.steps(run), distiller.rounds(run.config)
        for number in range(1, rounds + 1):
            title = f"{distiller.stage}, round {number}" if name != SDTT else f"round {number}"
            if is_delivered(run.workdir.round(number, name)):
                run.log(f"  {title}: finished before")
                continue
            run.log(f"  {title} of {rounds}: {distiller.told(run.config, number)}")
            job = distiller.job(run, number, step(number))
            distiller.deliver(run, number, _fit(job))


def is_distilled(run: Run) -> bool:
    """Whether the last round of every distiller has delivered."""
    return all(
        is_delivered(run.workdir.round(DISTILLERS[name].rounds(run.config), name))
        for name in run.config.distillers
    )


def delivered_rounds(run: Run, name: str) -> list[int]:
    """The rounds of a distiller that have delivered, ascending; none of one that is not asked for."""
    if name not in run.config.distillers:
        return []
    numbers = range(1, DISTILLERS[name].rounds(run.config) + 1)
    return [n for n in numbers if final(run.workdir.round(n, name)).exists()]


def round_teacher(run: Run, number: int) -> Path:
    """The folder whose `final` is the teacher of a round: the round before it, or the first teacher."""
    return run.workdir.teacher if number == 1 else run.workdir.round(number - 1)


def _sdtt_steps(run: Run) -> Callable[[int], TrainStep]:
    """One compiled step for all rounds: dt and the teacher are arguments of it."""
    config = run.config.distill
    step = make_train_step(distill_loss(run.diffusion, config), config.train)
    return lambda _number: step


def _sdtt_told(config: RunConfig, number: int) -> str:
    k, dt = config.distill.num_distill_steps, round_dt(config.distill, number)
    return (
        f"the teacher takes {k} steps of {dt:.6g}, the student learns to take one of {k * dt:.6g}"
    )


def _deliver_sdtt(run: Run, number: int, state: TrainState) -> None:
    config = run.config.distill
    run.deliver(
        run.workdir.round(number),
        run.denoiser,
        delivered_params(config, state),
        stage="distill",
        round=number,
        dt=round_dt(config, number),
        num_distill_steps=config.num_distill_steps,
        divergence=config.divergence,
    )


def _coupled_steps(run: Run) -> Callable[[int], TrainStep]:
    train_config = run.config.coupled.train
    return lambda number: make_train_step(coupled.round_loss(run, number), train_config)


def _coupled_told(config: RunConfig, number: int) -> str:
    calls, k = config.coupled.calls_of(number), config.coupled.num_distill_calls
    ahead = f"{k} of them" if k else "all of them"
    return (
        f"the teacher makes {calls} calls; the student sees their noise and learns {ahead} at once"
    )


def _deliver_coupled(run: Run, number: int, state: TrainState) -> None:
    run.deliver(
        run.workdir.round(number, COUPLED),
        run.coupled,
        _averaged(state),
        stage=COUPLED,
        round=number,
        num_calls=run.config.coupled.calls_of(number),
        num_distill_calls=run.config.coupled.num_distill_calls,
    )


def _coupled_round(run: Run, number: int, step_fn: TrainStep) -> TrainingJob:
    config = run.config.coupled.train
    pool, start, abstract = coupled.round_parts(run, number)
    return TrainingJob(run, COUPLED, number, config, step_fn, start, abstract, pool)


def _sdtt_round(run: Run, number: int, step_fn: TrainStep) -> TrainingJob:
    config = run.config.distill
    spec = StateSpec(config.train, run.mesh)
    init = functools.partial(run.denoiser.init, jax.random.key(0))
    shapes = jax.eval_shape(lambda: next_round(config, Student(unbox(init())), number))
    abstract = spec.abstract(init, shapes.context)

    def start() -> TrainState:
        teacher = run.delivered(round_teacher(run, number), run.denoiser, "distill")
        previous: Trained = Student(teacher)
        if number > 1:
            folder = run.workdir.round(number - 1)
            with Checkpoints(folder) as checkpoints:
                restored = checkpoints.restore(abstract)
            if restored is not None:
                previous = restored[0]
        student = next_round(config, previous, number, teacher_params=teacher)
        return spec.from_params(**student._asdict())

    return TrainingJob(run, "distill", number, config.train, step_fn, start, abstract)


def _from_scratch(
    run: Run, stage: str, network: Any, loss: LossFn, config: TrainConfig
) -> TrainingJob:
    spec = StateSpec(config, run.mesh)
    init = functools.partial(network.init, purpose_key(run.config.seed, f"{stage}.init"))
    start = functools.partial(spec.init, init)
    step_fn = make_train_step(loss, config)
    return TrainingJob(run, stage, 0, config, step_fn, start, spec.abstract(init))


def _from_base(run: Run) -> TrainingJob:
    """The training of a teacher that starts from a published model."""
    config, spec = run.config.teacher, StateSpec(run.config.teacher.train, run.mesh)
    abstract = spec.abstract(functools.partial(run.denoiser.init, jax.random.key(0)))

    def start() -> TrainState:
        return spec.from_params(run.base_params())

    loss, share = base_objective(run)
    step_fn = make_train_step(loss, config.train)
    return TrainingJob(run, "teacher", 0, config.train, step_fn, start, abstract, open_share=share)


def _fit(job: TrainingJob) -> TrainState:
    """Trains to the end from the latest checkpoint in the folder, or from the start."""
    run, config = job.run, job.config
    check_batch_size(
        config.batch_size, run.mesh, config.microbatches, f"{job.stage}.train.batch_size"
    )
    title = f"  {job.stage}, round {job.round}" if job.round else f"  {job.stage}"
    with Checkpoints(
        job.folder, keep=config.keep, keep_every=config.keep_every, metadata=job.metadata
    ) as checkpoints:
        restored = checkpoints.restore(job.abstract, expect=job.metadata)
        state = job.start() if restored is None else restored[0]
        del restored
        began, checkpoints.seconds = time.monotonic(), 0.0
        step = int(jax.device_get(state.step))
        what = f"a training step (stage {job.stage}, round {job.round})"
        with (
            MetricsWriter(run.workdir.root, job.tags, step) as writer,
            make_progress(title, config.num_steps, shown=processes.is_first()) as progress,
            watchdog(run.config.watchdog_seconds, what) as alive,
        ):
            state = train(
                state,
                job.step_fn,
                job.batch_at,
                job.key,
                config,
                checkpoints=checkpoints,
                log=TrainLog(
                    write=writer.write,
                    progress=progress.update,
                    on_rejected=functools.partial(_report_rejected, job),
                    alive=alive,
                    tokens_per_batch=config.batch_size * run.config.data.length,
                ),
            )
        seconds = time.monotonic() - began
    run.log(f"  {seconds:.1f} s, of which saving held it up for {checkpoints.seconds:.1f}")
    return state


def _report_rejected(job: TrainingJob, step: int, values: Mapping[str, float]) -> None:
    """Says so, and writes down what `--replay` and a person need to look at that batch again."""
    rejected = job.run.workdir.rejected
    job.run.log(
        f"  step {step}: loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}: this update "
        f"was rejected; its batch is named in {rejected.name}"
    )
    record = job.tags | {
        "step": step,
        "loss": str(values["loss"]),
        "grad_norm": str(values["grad_norm"]),
        "data_seed": job.data_seed,
        "batch": job.batch_number(step - 1),
        "batch_size": job.config.batch_size,
    }
    if processes.is_first():
        line = json.dumps(record) + "\n"
        before = rejected.read_text(encoding="utf-8") if rejected.exists() else ""
        # A run that is resumed before it comes to the same batch again.
        if line not in before:
            write_text(rejected, before + line)


def _averaged(state: TrainState) -> Any:
    """The moving average of a state's parameters if it keeps one, else the parameters."""
    return state.params if state.ema_params is None else state.ema_params


DISTILLERS = {
    SDTT: Distiller(
        "distill",
        lambda config: config.distill.num_rounds,
        _sdtt_steps,
        _sdtt_round,
        _deliver_sdtt,
        _sdtt_told,
    ),
    COUPLED: Distiller(
        COUPLED,
        lambda config: config.coupled.num_rounds,
        _coupled_steps,
        _coupled_round,
        _deliver_coupled,
        _coupled_told,
    ),
}
