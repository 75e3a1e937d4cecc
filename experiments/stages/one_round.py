"""The distillers of one round: each has the first teacher, a loss, and whatever that loss needs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.distillers import DISTILLERS
from experiments.stages.context import Run
from experiments.stages.job import Rounds, TrainingJob, averaged
from experiments.stages.objective import Networks
from sdtt_jax import objectives
from sdtt_jax.config import to_mapping
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.distillation.idlm import FAKE, STUDENT
from sdtt_jax.distillation.mmd import MmdConfig
from sdtt_jax.keys import purpose_key
from sdtt_jax.networks.base import abstract_params
from sdtt_jax.parallel.mesh import RULES
from sdtt_jax.parallel.placement import tree_shardings, unbox
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import LossFn, make_train_step
from sdtt_jax.typing import Params, Tree


class Parts(NamedTuple):
    """The parts in which the distillers of one round differ, beside their rows of `DISTILLERS`."""

    description: str  # a line of progress that says what the round does
    # Makes the loss of its training step, from the settings and the teacher's diffusion; from the student's
    # too, before the teacher's, if the student sees noise.
    loss: Callable[..., LossFn]
    fake: bool = False  # whether a fake teacher is trained together with the student
    keeps_teacher: bool = True  # whether the loss reads the teacher


def loss_of(name: str, run: Networks) -> LossFn:
    """The loss of a distiller's training step; its settings are the config's field `name`."""
    loss, config = PARTS[name].loss, getattr(run.config, name)
    if DISTILLERS[name].sees:
        return loss(run.diffusion_of(run.student(name)), run.diffusion, config)
    loss = functools.partial(loss, config=config)
    return objectives.arranged(loss, run.diffusion, run.sequences)


def _shapes(name: str, run: Networks) -> Tree:
    """Shapes of everything that is trained, boxed as a network's `init` boxes them."""
    student = abstract_params(run.student(name))
    return {STUDENT: student, FAKE: abstract_params(run.denoiser)} if PARTS[name].fake else student


def abstract_state(name: str, run: Networks, spec: StateSpec) -> TrainState:
    """The shapes and shardings of a distiller's state."""
    teacher = unbox(abstract_params(run.denoiser))
    context = {"teacher_params": teacher} if PARTS[name].keeps_teacher else {}
    return spec.abstract(_shapes(name, run), context)


def one_round(name: str) -> Rounds:
    """The round of a distiller that has only one; its settings are the config's field `name`."""
    parts, about = PARTS[name], DISTILLERS[name]

    def job(run: Run, number: int) -> TrainingJob:
        config = getattr(run.config, name).train
        step_fn = make_train_step(loss_of(name, run), config)
        spec, key = StateSpec(config, run.mesh), purpose_key(run.config.seed, f"{name}.init")

        def begin(teacher: Params, student: Params) -> Tree:
            if about.sees and not about.after:
                student = run.student(name).init_from(teacher, key)
            return {STUDENT: student, FAKE: teacher} if parts.fake else student

        def start() -> TrainState:
            teacher = student = run.delivered(run.workdir.teacher, run.denoiser, "distill")
            if about.after:
                last = run.workdir.round(run.config.rounds(about.after)[-1], about.after)
                student = run.delivered(last, run.student(about.after), "distill")
            shardings = tree_shardings(_shapes(name, run), RULES, run.mesh)
            trained = jax.jit(begin, out_shardings=shardings)(teacher, student)
            context = {"teacher_params": teacher} if parts.keeps_teacher else {}
            return spec.from_params(trained, context)

        abstract = abstract_state(name, run, spec)
        return TrainingJob(run, name, number, config, step_fn, start, abstract)

    def deliver(run: Run, number: int, state: TrainState) -> None:
        settings = to_mapping(getattr(run.config, name))
        del settings["train"]
        run.deliver(
            run.workdir.round(number, name),
            run.student(name),
            averaged(state)[STUDENT] if parts.fake else averaged(state),
            stage=name,
            round=number,
            settings=settings,
        )

    return Rounds(job, deliver, lambda _config, _number: parts.description)


def _mmd_loss(diffusion: MaskedDiffusion, config: MmdConfig) -> LossFn:
    network: Any = diffusion.denoiser
    features = functools.partial(network.layer_states, layer=config.layer)
    return objectives.mmd_loss(diffusion, features, config)


PARTS = {
    "alpha": Parts(
        "blocks of real texts, without a teacher",
        objectives.alpha_loss,
        keeps_teacher=False,
    ),
    "mixture": Parts(
        "for each text, one of several students learns what the teacher's calls reveal together",
        objectives.mixture_loss,
    ),
    "mmd": Parts(
        "completions are compared with real texts by the teacher's hidden states",
        _mmd_loss,
    ),
    "idlm": Parts(
        "a fake teacher learns the student's texts, and the student learns what the teacher says about them",
        objectives.idlm_loss,
        fake=True,
    ),
    "coupled_idlm": Parts(
        "a fake teacher learns the noise-coupled student's texts, and the student learns what the teacher "
        "says about them",
        objectives.coupled_idlm_loss,
        fake=True,
    ),
}
