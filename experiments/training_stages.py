"""The stages that train: teacher, judge, and the rounds of distillation, all through the one loop."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.context import Run
from experiments.losses import distill_loss, judge_loss, teacher_loss
from experiments.workdir import is_delivered
from sdtt_jax import processes
from sdtt_jax.configs import differences, to_mapping
from sdtt_jax.distillation.rounds import round_dt
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.loading import load_denoiser
from sdtt_jax.keys import purpose_key, purpose_seed
from sdtt_jax.training import sharding as sh
from sdtt_jax.training.checkpoint import Checkpoints
from sdtt_jax.training.loop import train
from sdtt_jax.training.metrics import MetricsWriter
from sdtt_jax.training.optimizers import make_optimizer
from sdtt_jax.training.progress import Progress, make_progress
from sdtt_jax.training.state import TrainState, abstract_state, init_state, state_from_params
from sdtt_jax.training.step import LossFn, TrainConfig, TrainStep, make_train_step

Params = Any


def train_teacher(run: Run) -> None:
    """Trains the masked diffusion model that the first round distils."""
    config = run.config.teacher
    if config.checkpoint:
        _adopt_teacher(run, config.checkpoint)
        return
    loss = teacher_loss(run.denoiser, run.schedule, config)
    state = _train_from_scratch(
        run, "teacher", run.workdir.teacher, run.denoiser, loss, config.train
    )
    run.deliver(run.workdir.teacher, _delivered_params(state), "denoiser", stage="teacher")


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
    run.deliver(run.workdir.teacher, model.params, "denoiser", stage="teacher", source=checkpoint)


def train_judge(run: Run) -> None:
    """Trains the autoregressive baseline and scorer."""
    config = run.config.judge.train
    loss = judge_loss(run.judge, run.tokenizer.bos_id)
    state = _train_from_scratch(run, "judge", run.workdir.judge, run.judge, loss, config)
    run.deliver(run.workdir.judge, _delivered_params(state), "autoregressive", stage="judge")


def distill(run: Run) -> None:
    """All rounds: each halves the steps (for k = 2), then its student is the next teacher."""
    config = run.config.distill
    optimizer = make_optimizer(config.train.optimizer, config.train.num_steps)
    # One compiled step serves all rounds: dt and the teacher are arguments of it.
    loss = distill_loss(run.denoiser, run.schedule, config)
    step = make_train_step(loss, optimizer, config.train)
    for number in range(1, config.num_rounds + 1):
        if is_delivered(run.workdir.round(number)):
            run.say(f"  round {number}: finished before")
        else:
            _distill_round(run, number, optimizer, step)


def _distill_round(
    run: Run, number: int, optimizer: optax.GradientTransformation, step: TrainStep
) -> None:
    config = run.config.distill
    dt = round_dt(config, number)
    run.say(
        f"  round {number} of {config.num_rounds}: the teacher takes {config.num_distill_steps} steps of "
        f"{dt:.6g}, the student learns to take one of {config.num_distill_steps * dt:.6g}"
    )
    state = _fit(
        run,
        {"stage": "distill", "round": number},
        run.workdir.round(number),
        step,
        functools.partial(_round_start, run, number, dt, optimizer),
        _round_abstract(run, dt, number, optimizer),
        config.train,
    )
    run.deliver(
        run.workdir.round(number),
        _delivered_params(state, ema=config.use_ema_on_growth),
        "denoiser",
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
    teacher = sh.unbox(jax.eval_shape(init))
    context = {"teacher_params": teacher, "dt": jnp.float32(dt), "round": jnp.int32(number)}
    ema = run.config.distill.train.ema_decay > 0
    return abstract_state(init, optimizer, run.mesh, context=context, ema=ema)


def _round_start(
    run: Run, number: int, dt: float, optimizer: optax.GradientTransformation
) -> TrainState:
    config = run.config.distill
    teacher = run.delivered(round_teacher(run, number), "denoiser", "distill")
    context = {"teacher_params": teacher, "dt": jnp.float32(dt), "round": jnp.int32(number)}
    ema = config.train.ema_decay > 0
    if number == 1:
        return state_from_params(teacher, optimizer, context=context, ema=ema)
    # The student goes on from its raw parameters; its average and, if asked, its optimizer go on too.
    with Checkpoints(run.workdir.round(number - 1), keep=config.train.keep) as checkpoints:
        restored = checkpoints.restore(_round_abstract(run, dt, number - 1, optimizer))
    if restored is None:
        return state_from_params(teacher, optimizer, context=context, ema=ema)
    before, _ = restored
    return state_from_params(
        before.params,
        optimizer,
        context=context,
        ema=ema,
        ema_params=before.ema_params,
        ema_count=before.ema_count,
        opt_state=None if config.reset_optimizer_on_growth else before.opt_state,
    )


def _train_from_scratch(
    run: Run, stage: str, folder: Path, network: Any, loss: LossFn, config: TrainConfig
) -> TrainState:
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    init = functools.partial(network.init, purpose_key(run.config.seed, f"{stage}.init"))
    ema = config.ema_decay > 0
    return _fit(
        run,
        {"stage": stage, "round": 0},
        folder,
        make_train_step(loss, optimizer, config),
        lambda: init_state(init, optimizer, run.mesh, ema=ema),
        abstract_state(init, optimizer, run.mesh, ema=ema),
        config,
    )


def _fit(
    run: Run,
    tags: dict[str, Any],
    folder: Path,
    step_fn: TrainStep,
    start: Callable[[], TrainState],
    abstract: TrainState,
    config: TrainConfig,
) -> TrainState:
    """Trains to the end from the latest checkpoint in `folder`, or from `start()`."""
    stage, number = tags["stage"], tags["round"]
    sh.check_batch_size(
        config.batch_size, run.mesh, config.microbatches, f"{stage}.train.batch_size"
    )
    seed = purpose_seed(run.config.seed, f"{stage}.data")
    # Rounds go on in the data where the one before them ended.
    offset = max(number - 1, 0) * config.num_steps
    title = f"{stage}, round {number}" if number else stage
    shape = (config.batch_size, run.config.data.length)

    def batch_at(step: int) -> jax.Array:
        rows = functools.partial(run.train_split.batch, seed, offset + step, config.batch_size)
        return sh.place_rows(rows, shape, run.mesh)

    with (
        MetricsWriter(run.workdir.root) as writer,
        Checkpoints(folder, keep=config.keep, meta=tags) as checkpoints,
        _progress(f"  {title}", config.num_steps) as progress,
    ):
        restored = checkpoints.restore(abstract, expect=tags)
        state = start() if restored is None else restored[0]
        del restored
        return train(
            state,
            step_fn,
            batch_at,
            config.num_steps,
            purpose_key(run.config.seed, stage, number),
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
            log_every=config.log_every,
            save_every=config.save_every,
            tokens_per_batch=config.batch_size * run.config.data.length,
            tags=tags,
            max_rejected=config.max_rejected,
        )


def _progress(title: str, num_steps: int) -> contextlib.AbstractContextManager[Progress | None]:
    return make_progress(title, num_steps) if processes.is_first() else contextlib.nullcontext()


def _delivered_params(state: TrainState, *, ema: bool = True) -> Params:
    return state.ema_params if ema and state.ema_params is not None else state.params
