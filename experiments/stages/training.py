"""The stages that train: teacher, judge, and the rounds of every distiller, all through the one loop."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.distillers import COUPLED, SDTT, stage_of
from experiments.settings import RunConfig
from experiments.stages import adoption, coupled, objective
from experiments.stages.context import Run
from experiments.stages.devices import check_batches, check_split, sections_of
from experiments.stages.job import (
    Batches,
    Rounds,
    TrainingJob,
    averaged,
    deliver_base,
    facts_of_adapters,
    report_rejected,
)
from experiments.stages.one_round import PARTS, one_round
from experiments.stages.workdir import has_begun, is_delivered
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.config import require
from sdtt_jax.data.records import read_info
from sdtt_jax.distillation.rounds import Student, delivered_params, next_round, round_dt
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.keys import purpose_key
from sdtt_jax.networks.base import abstract_params
from sdtt_jax.networks.kinds import network_of
from sdtt_jax.networks.lora import LoraConfig, check_targets
from sdtt_jax.objectives import judge_loss, open_share
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.placement import place_batch
from sdtt_jax.progress import make_progress
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.loop import TrainLog, train
from sdtt_jax.training.metrics import MetricsWriter, drop_after
from sdtt_jax.training.optimizers import greatest_share
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import LossFn, make_train_step
from sdtt_jax.training.watchdog import watchdog
from sdtt_jax.typing import Tree


def training_job(run: Run, stage: str, number: int = 0) -> TrainingJob:
    """The training of a stage or round."""
    if stage == "teacher":
        loss = objective.teacher_objective(run)
        if run.base is not None:
            return _from_base(run, loss)
        return _from_scratch(run, stage, run.denoiser, loss, run.config.teacher.train)
    if stage in ("judge", "skeleton"):
        network, every = run.judge, 1
        if stage == "skeleton":
            network, every = run.skeleton, run.config.judge.skeleton
        loss = judge_loss(network, run.tokenizer.bos_id, run.sequences, every)
        return _from_scratch(run, stage, network, loss, run.config.judge.train, every)
    return ROUNDS[stage].job(run, number)


def check_found_elsewhere(run: Run, names: Sequence[str]) -> None:
    """Checks what the remaining stages take from elsewhere, before any of them runs for hours.

    That is the models, data and pools that the config names, what is to be done to a model that the teacher
    starts from, the linear maps that get adapters, and the devices, which must divide every batch.

    Raises:
      ConfigError: a field names something that does not exist, or a batch size does not fit the devices.
    """
    ahead = _unfinished(run, names)
    if ahead or not run.is_prepared:
        _check_mixture(run)
    for stage in ahead:
        if stage in ("teacher", "judge"):
            adoption.check(run, stage)
    if "teacher" in ahead:
        _check_annealing(run)
    for stage in ahead:
        if stage in ("teacher", "distill"):
            _check_adapters(run, getattr(run.config, stage).lora)
    check_batches(run.config, ahead, run.mesh)
    if COUPLED in ahead:
        coupled.check_pool(run)


def _check_mixture(run: Run) -> None:
    # For a large text, training begins hours after its preparation.
    for mixed in run.config.data.mixed():
        try:
            read_info(mixed)
        except DataError as error:
            raise ConfigError(f"config.data.mixture: {error}") from None


def _check_annealing(run: Run) -> None:
    name, annealing = run.config.teacher.init_from, run.config.teacher.attention_annealing
    # A teacher that has begun goes on as it began.
    if name and annealing and not has_begun(run.workdir.teacher):
        require(
            run.was_causal,
            f"teacher.attention_annealing={annealing} opens the attention of a causal model, and "
            f"teacher.init_from={name} is a denoiser already; leave it out.",
        )


def _check_adapters(run: Run, lora: LoraConfig) -> None:
    config = run.config
    if lora.rank:
        # No linear map of the blocks depends on the vocabulary, which is not known yet.
        own = None if config.published else network_of(config.denoiser(vocab_size=2))
        check_targets(own or run.denoiser, lora)


def check_networks(run: Run, names: Sequence[str]) -> None:
    """`check_split` of every network that the remaining stages train or take.

    For this the vocabulary must be known, so it comes after the stage "data".
    """
    check_split(run, _unfinished(run, names), run.mesh)


def _unfinished(run: Run, names: Sequence[str]) -> list[str]:
    """The sections of the config whose models the named stages have still to train or to take."""
    done = {
        "teacher": lambda: is_delivered(run.workdir.teacher),
        "judge": lambda: is_judged(run),
    } | {stage_of(name): functools.partial(_is_done, run, name) for name in run.config.distillers}
    return [section for section in sections_of(run.config, names) if not done[section]()]


def train_teacher(run: Run) -> None:
    """Trains the masked diffusion model that the first round distils."""
    config = run.config.teacher
    if config.checkpoint:
        adoption.adopt_teacher(run, config.checkpoint)
        return
    if config.lora.rank:
        deliver_base(run)
    params = averaged(_fit(training_job(run, "teacher")))
    facts = facts_of_adapters(run, config.lora)
    run.deliver(run.workdir.teacher, run.denoiser, params, stage="teacher", **facts)


def train_judge(run: Run) -> None:
    """Trains the causal model that is baseline and judge, and the one that writes every n-th token."""
    if is_delivered(run.workdir.judge):
        run.log("  judge: finished before")
    elif run.config.judge.checkpoint:
        adoption.adopt_judge(run, run.config.judge.checkpoint)
    else:
        state = _fit(training_job(run, "judge"))
        run.deliver(run.workdir.judge, run.judge, averaged(state), stage="judge")
    if every := run.config.judge.skeleton:
        state = _fit(training_job(run, "skeleton"))
        facts = {"stage": "skeleton", "every": every}
        run.deliver(run.workdir.skeleton, run.skeleton, averaged(state), **facts)


def is_judged(run: Run) -> bool:
    """Whether the stage "judge" has delivered all that it trains."""
    last = run.workdir.skeleton if run.config.judge.skeleton else run.workdir.judge
    return is_delivered(run.workdir.judge) and is_delivered(last)


def distill(run: Run, distillers: Sequence[str]) -> None:
    """Runs all rounds of the named distillers; the student of a round is the teacher of the next."""
    for name in distillers:
        rounds, numbers = ROUNDS[stage_of(name)], run.config.rounds(name)
        for number in numbers:
            title = f"{name}, round {number}" if name != SDTT else f"round {number}"
            if is_delivered(run.workdir.round(number, name)):
                run.log(f"  {title}: finished before")
                continue
            run.log(f"  {title} of {len(numbers)}: {rounds.describe(run.config, number)}")
            rounds.deliver(run, number, _fit(rounds.job(run, number)))


def is_distilled(run: Run, distillers: Sequence[str]) -> bool:
    """Whether every round of the named distillers has delivered."""
    return all(_is_done(run, name) for name in distillers)


def _is_done(run: Run, name: str) -> bool:
    return delivered_rounds(run, name) == [*run.config.rounds(name)]


def delivered_rounds(run: Run, name: str) -> list[int]:
    """The finished rounds of a distiller, ascending; none if the config does not ask for it."""
    if name not in run.config.distillers:
        return []
    return [n for n in run.config.rounds(name) if is_delivered(run.workdir.round(n, name))]


def _describe_sdtt(config: RunConfig, number: int) -> str:
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
        **facts_of_adapters(run, config.lora),
    )


def _sdtt_round(run: Run, number: int) -> TrainingJob:
    config = run.config.distill
    spec = StateSpec(config.train, run.mesh)
    abstract = objective.abstract_round(run, number, spec)

    def start() -> TrainState:
        if config.lora.rank and number == 1 and not run.config.teacher.lora.rank:
            teacher = spec.init(functools.partial(objective.init_params, run, config.lora)).params
        else:
            # The student of the round before is the teacher.
            folder = run.workdir.teacher if number == 1 else run.workdir.round(number - 1)
            teacher = run.delivered(folder, run.denoiser, "distill", config.lora)
        previous: Any = Student(teacher)
        if number > 1:
            with Checkpoints(run.workdir.round(number - 1)) as checkpoints:
                restored = checkpoints.restore(abstract)
            if restored is None:
                run.log(
                    f"  round {number - 1} has no checkpoint; continuing from its delivered parameters alone"
                )
            elif int(jax.device_get(restored[0].step)) < config.train.num_steps:
                run.log(f"  round {number - 1} lost its last checkpoint; repeating its last steps")
                previous = _fit(_sdtt_round(run, number - 1))
            else:
                previous = restored[0]
        student = next_round(config, previous, number, teacher_params=teacher)
        return spec.from_params(**student._asdict())

    step_fn, lora = run.distill_step, config.lora
    return TrainingJob(run, "distill", number, config.train, step_fn, start, abstract, lora=lora)


def _from_scratch(
    run: Run, stage: str, network: Any, loss: LossFn, config: TrainConfig, every: int = 1
) -> TrainingJob:
    spec = StateSpec(config, run.mesh)
    init = functools.partial(network.init, purpose_key(run.config.seed, f"{stage}.init"))
    start = functools.partial(spec.init, init)
    step_fn = make_train_step(loss, config)
    abstract = spec.abstract(abstract_params(network))
    return TrainingJob(run, stage, 0, config, step_fn, start, abstract, every=every)


def _from_base(run: Run, loss: LossFn) -> TrainingJob:
    """The training of a teacher that starts from a published model."""
    config, lora = run.config.teacher, run.config.teacher.lora
    spec = StateSpec(config.train, run.mesh)
    init = functools.partial(objective.init_params, run, lora)

    def opened(seed: int, number: int, size: int) -> Tree:
        """A batch of texts, and how far a step's attention to later positions is opened."""
        share = np.full(size, open_share(number, config.attention_annealing), np.float32)
        return {"tokens": run.texts(seed, number, size), "open": place_batch(share, run.mesh)}

    def start() -> TrainState:
        return spec.init(init) if lora.rank else spec.from_params(run.base_params())

    train, abstract = make_train_step(loss, config.train), spec.abstract(init)
    batches = Batches(opened, {}) if run.was_causal else None
    return TrainingJob(
        run, "teacher", 0, config.train, train, start, abstract, batches=batches, lora=lora
    )


def _fit(job: TrainingJob) -> TrainState:
    """Trains to the end, from the latest checkpoint in the folder or from the start."""
    run, config = job.run, job.config
    title = f"  {job.stage}, round {job.round}" if job.round else f"  {job.stage}"
    run.check_place()
    # An optimizer that is not reset counts its updates on, from round to round.
    goes_on = job.stage == "distill" and not run.config.distill.reset_optimizer_on_growth
    updates = config.num_steps * (job.round if goes_on else 1)
    if (share := greatest_share(config.optimizer, updates)) < 1:
        section = "judge" if job.stage == "skeleton" else job.stage
        run.log(
            f"  the learning rate reaches only {share:.0%} of its peak, because the warm-up outlasts the "
            f"training: {section}.train.optimizer.warmup_steps={config.optimizer.warmup_steps}, "
            f"num_steps={config.num_steps}"
        )
    with job.checkpoints() as checkpoints:
        state = job.state(checkpoints)
        began, checkpoints.seconds = time.monotonic(), 0.0
        step = int(jax.device_get(state.step))
        what = f"a training step (stage {job.stage}, round {job.round})"
        if processes.is_first():
            drop_after(run.workdir.rejected, job.tags, step)
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
                    on_rejected=functools.partial(report_rejected, job),
                    saving=writer.keep,
                    alive=alive,
                    tokens_per_batch=job.tokens_per_batch,
                ),
            )
        seconds = time.monotonic() - began
    run.log(f"  {seconds:.1f} s, of which saving held it up for {checkpoints.seconds:.1f}")
    return state


# By the names of stages.
ROUNDS = {
    stage_of(SDTT): Rounds(_sdtt_round, _deliver_sdtt, _describe_sdtt),
    COUPLED: coupled.ROUNDS,
    **{name: one_round(name) for name in PARTS},
}
