"""The stages that train: teacher, judge, and the rounds of distillation, all through the one loop."""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import optax

from experiments.stages.context import Run
from experiments.stages.workdir import is_delivered
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.config import differences, to_mapping
from sdtt_jax.distillation.rounds import round_dt
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.load import load_denoiser
from sdtt_jax.keys import purpose_key, purpose_seed
from sdtt_jax.objectives import distill_loss, judge_loss, teacher_loss
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import check_batch_size
from sdtt_jax.parallel.placement import place_rows, unbox
from sdtt_jax.paths import write_text
from sdtt_jax.progress import Progress, make_progress
from sdtt_jax.training.loop import train
from sdtt_jax.training.metrics import MetricsWriter
from sdtt_jax.training.optimizers import make_optimizer
from sdtt_jax.training.state import TrainState, abstract_state, init_state, state_from_params
from sdtt_jax.training.step import LossFn, TrainConfig, TrainStep, make_train_step

Params = Any


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a run: a stage, or a round of distillation.

    Attributes:
      stage, round: `teacher` 0, `judge` 0, `distill` 1, 2, …
      folder: where its checkpoints are.
      config: steps, batch, optimizer.
      step_fn: the compiled step.
      start: makes the state to begin with.
      abstract: shapes and shardings of the state.
    """

    stage: str
    round: int
    folder: Path
    config: TrainConfig
    step_fn: TrainStep
    start: Callable[[], TrainState]
    abstract: TrainState

    @property
    def tags(self) -> dict[str, Any]:
        """What names it in metrics and messages."""
        return {"stage": self.stage, "round": self.round}


def training(run: Run, stage: str, number: int = 0) -> Training:
    """The training of a stage or round."""
    if stage == "teacher":
        loss = teacher_loss(run.diffusion, run.config.teacher)
        config = run.config.teacher.train
        return _from_scratch(run, stage, run.workdir.teacher, run.denoiser, loss, config)
    if stage == "judge":
        loss = judge_loss(run.judge, run.tokenizer.bos_id)
        config = run.config.judge.train
        return _from_scratch(run, stage, run.workdir.judge, run.judge, loss, config)
    return _round(run, number, *_distillation(run))


def train_teacher(run: Run) -> None:
    """Trains the masked diffusion model that the first round distils."""
    config = run.config.teacher
    if config.checkpoint:
        _adopt_teacher(run, config.checkpoint)
        return
    state = _fit(run, training(run, "teacher"))
    run.deliver(run.workdir.teacher, run.denoiser, _delivered_params(state), stage="teacher")


def _adopt_teacher(run: Run, checkpoint: str) -> None:
    """Delivers a teacher that exists, if it is one for this run's sizes and tokens."""
    model = load_denoiser(checkpoint, mesh=run.mesh)
    # How it is computed may differ; what it is may not.
    free = {"compute_dtype": "", "remat": ""}
    lines = differences(to_mapping(model.config) | free, to_mapping(run.denoiser.config) | free)
    if lines:
        raise ConfigError(
            f"config.teacher.checkpoint={checkpoint} is another network than config.model and config.data "
            "ask for; set these fields alike (the checkpoint's first):\n  " + "\n  ".join(lines)
        )
    if model.text_tokenizer.digest != run.tokenizer.digest:
        raise ConfigError(
            f"config.teacher.checkpoint={checkpoint} was trained on another vocabulary than "
            "config.tokenizer and config.data give; use its tokenizer and corpus."
        )
    run.say(f"  taken from {checkpoint}")
    run.deliver(run.workdir.teacher, run.denoiser, model.params, stage="teacher", source=checkpoint)


def train_judge(run: Run) -> None:
    """Trains the causal model that is baseline and judge."""
    state = _fit(run, training(run, "judge"))
    run.deliver(run.workdir.judge, run.judge, _delivered_params(state), stage="judge")


def distill(run: Run) -> None:
    """All rounds: each halves the steps (for k = 2), then its student is the next teacher."""
    optimizer, step = _distillation(run)
    for number in range(1, run.config.distill.num_rounds + 1):
        if is_delivered(run.workdir.round(number)):
            run.say(f"  round {number}: finished before")
        else:
            _distill_round(run, number, optimizer, step)


def _distillation(run: Run) -> tuple[optax.GradientTransformation, TrainStep]:
    config = run.config.distill
    optimizer = make_optimizer(config.train.optimizer, config.train.num_steps)
    # One compiled step serves all rounds: dt and the teacher are arguments of it.
    loss = distill_loss(run.diffusion, config)
    return optimizer, make_train_step(loss, optimizer, config.train)


def _round(
    run: Run, number: int, optimizer: optax.GradientTransformation, step: TrainStep
) -> Training:
    dt = round_dt(run.config.distill, number)
    return Training(
        "distill",
        number,
        run.workdir.round(number),
        run.config.distill.train,
        step,
        functools.partial(_round_start, run, number, dt, optimizer),
        _round_abstract(run, dt, number, optimizer),
    )


def _distill_round(
    run: Run, number: int, optimizer: optax.GradientTransformation, step: TrainStep
) -> None:
    config = run.config.distill
    dt = round_dt(config, number)
    run.say(
        f"  round {number} of {config.num_rounds}: the teacher takes {config.num_distill_steps} steps of "
        f"{dt:.6g}, the student learns to take one of {config.num_distill_steps * dt:.6g}"
    )
    state = _fit(run, _round(run, number, optimizer, step))
    run.deliver(
        run.workdir.round(number),
        run.denoiser,
        _delivered_params(state, ema=config.use_ema_on_growth),
        stage="distill",
        round=number,
        dt=dt,
        num_distill_steps=config.num_distill_steps,
        divergence=config.divergence,
    )


def round_teacher(run: Run, number: int) -> Path:
    """The folder whose `final` is the teacher of a round: the round before it, or the first teacher."""
    return run.workdir.teacher if number == 1 else run.workdir.round(number - 1)


def _round_abstract(
    run: Run, dt: float, number: int, optimizer: optax.GradientTransformation
) -> TrainState:
    """Shapes and shardings of a round's state; round, dt and teacher are part of it."""
    init = functools.partial(run.denoiser.init, jax.random.key(0))
    teacher = unbox(jax.eval_shape(init))
    context = {"teacher_params": teacher, "dt": jnp.float32(dt), "round": jnp.int32(number)}
    averages = _averages(run.config.distill.train)
    return abstract_state(init, optimizer, run.mesh, context=context, **averages)


class _Averages(TypedDict):
    ema: bool
    loss_mean: bool


def _averages(config: TrainConfig) -> _Averages:
    """Which moving averages a state keeps."""
    return {"ema": config.ema_decay > 0, "loss_mean": config.spike_factor > 0}


def _round_start(
    run: Run, number: int, dt: float, optimizer: optax.GradientTransformation
) -> TrainState:
    config = run.config.distill
    teacher = run.delivered(round_teacher(run, number), run.denoiser, "distill")
    context = {"teacher_params": teacher, "dt": jnp.float32(dt), "round": jnp.int32(number)}
    averages = _averages(config.train)
    if number == 1:
        return state_from_params(teacher, optimizer, context=context, **averages)
    # The student goes on from its raw parameters; its average and, if asked, its optimizer go on too.
    with Checkpoints(run.workdir.round(number - 1), keep=config.train.keep) as checkpoints:
        restored = checkpoints.restore(_round_abstract(run, dt, number - 1, optimizer))
    if restored is None:
        return state_from_params(teacher, optimizer, context=context, **averages)
    before, _ = restored
    return state_from_params(
        before.params,
        optimizer,
        context=context,
        **averages,
        ema_params=before.ema_params,
        ema_count=before.ema_count,
        opt_state=None if config.reset_optimizer_on_growth else before.opt_state,
    )


def _from_scratch(
    run: Run, stage: str, folder: Path, network: Any, loss: LossFn, config: TrainConfig
) -> Training:
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    init = functools.partial(network.init, purpose_key(run.config.seed, f"{stage}.init"))
    averages = _averages(config)
    return Training(
        stage,
        0,
        folder,
        config,
        make_train_step(loss, optimizer, config),
        lambda: init_state(init, optimizer, run.mesh, **averages),
        abstract_state(init, optimizer, run.mesh, **averages),
    )


def base_key(run: Run, what: Training) -> jax.Array:
    """The key that a training's steps fold their number into."""
    return purpose_key(run.config.seed, what.stage, what.round)


def batch_number(what: Training, step: int) -> int:
    """The number, in the stage's stream of batches, of the batch that step `step` (from 0) takes."""
    # Rounds go on in the data where the one before them ended.
    return max(what.round - 1, 0) * what.config.num_steps + step


def batch_at(run: Run, what: Training, step: int) -> jax.Array:
    """The batch of a step (from 0), on the mesh: `[batch, length]` int32."""
    seed = purpose_seed(run.config.seed, f"{what.stage}.data")
    size, number = what.config.batch_size, batch_number(what, step)
    rows = functools.partial(run.train_split.batch, seed, number, size)
    return place_rows(rows, (size, run.config.data.length), run.mesh)


def facts(run: Run, what: Training) -> dict[str, Any]:
    """What a checkpoint of this training must say of itself: where it belongs, and what it depends on
    beyond the config, which `claim` compares."""
    # Which bits a key gives depends on its implementation, and for threefry on this flag of JAX's.
    random = str(base_key(run, what).dtype)
    if getattr(jax.config, "jax_threefry_partitionable", True):
        random += ", partitionable"
    return what.tags | {"data": run.info.fingerprint, "random": random}


def _fit(run: Run, what: Training) -> TrainState:
    """Trains to the end from the latest checkpoint in the folder, or from the start."""
    config = what.config
    check_batch_size(
        config.batch_size, run.mesh, config.microbatches, f"{what.stage}.train.batch_size"
    )
    title = f"{what.stage}, round {what.round}" if what.round else what.stage
    expected = facts(run, what)
    with (
        MetricsWriter(run.workdir.root) as writer,
        Checkpoints(
            what.folder, keep=config.keep, keep_every=config.keep_every, meta=expected
        ) as checkpoints,
        _progress(f"  {title}", config.num_steps) as progress,
    ):
        restored = checkpoints.restore(what.abstract, expect=expected)
        state = what.start() if restored is None else restored[0]
        del restored
        began, checkpoints.seconds = time.monotonic(), 0.0
        state = train(
            state,
            what.step_fn,
            functools.partial(batch_at, run, what),
            config.num_steps,
            base_key(run, what),
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
            log_every=config.log_every,
            save_every=config.save_every,
            tokens_per_batch=config.batch_size * run.config.data.length,
            tags=what.tags,
            max_rejected=config.max_rejected,
            on_rejected=functools.partial(_tell_of_rejected, run, what),
            check_replicas_every=config.check_replicas_every,
            watchdog_seconds=run.config.watchdog_seconds,
        )
        seconds = time.monotonic() - began
    run.say(f"  {seconds:.1f} s, of which saving held it up for {checkpoints.seconds:.1f}")
    return state


def _tell_of_rejected(run: Run, what: Training, step: int, values: Mapping[str, float]) -> None:
    """Says so, and writes down what `--replay` and a person need to look at that batch again."""
    run.say(
        f"  step {step}: loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}: this update "
        f"was rejected; its batch is named in {run.workdir.rejected.name}"
    )
    record = what.tags | {
        "step": step,
        "loss": str(values["loss"]),
        "grad_norm": str(values["grad_norm"]),
        "data_seed": purpose_seed(run.config.seed, f"{what.stage}.data"),
        "batch": batch_number(what, step - 1),
        "batch_size": what.config.batch_size,
    }
    if processes.is_first():
        path, line = run.workdir.rejected, json.dumps(record) + "\n"
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        # A run that is resumed before it comes to the same batch again.
        if line not in before:
            write_text(path, before + line)


def _progress(title: str, num_steps: int) -> contextlib.AbstractContextManager[Progress | None]:
    return make_progress(title, num_steps) if processes.is_first() else contextlib.nullcontext()


def _delivered_params(state: TrainState, *, ema: bool = True) -> Params:
    return state.ema_params if ema and state.ema_params is not None else state.params
