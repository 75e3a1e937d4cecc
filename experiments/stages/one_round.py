"""The distillers of one round: each has the first teacher, a loss, and whatever that loss needs."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.distillers import COUPLED
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
from sdtt_jax.typing import Key, Params, Tree


class Parts(NamedTuple):
    """The parts in which the distillers of one round differ."""

    description: str  # a line of progress that says what the round does
    loss: Callable[[Networks], LossFn]  # the loss of its training step
    network: Callable[[Networks], Any] = lambda run: run.denoiser  # the student's
    # Reads the parameters of another student that this one continues from; None: it starts from the teacher.
    source: Callable[[Run], Params] | None = None
    fake: bool = False  # whether a fake teacher is trained together with the student
    keeps_teacher: bool = True  # whether the loss reads the teacher

    def shapes(self, run: Networks) -> Tree:
        """Shapes of everything that is trained, boxed as a network's `init` boxes them."""
        student = abstract_params(self.network(run))
        return {STUDENT: student, FAKE: abstract_params(run.denoiser)} if self.fake else student

    def begin(self, run: Networks, teacher: Params, source: Params, key: Key) -> Tree:
        """Initial parameters of everything that is trained, from the teacher's, the source's, and a key."""
        network, student = self.network(run), source
        if self.source is None and network != run.denoiser:
            student = network.init_from(teacher, key)
        return {STUDENT: student, FAKE: teacher} if self.fake else student


def abstract_state(parts: Parts, run: Networks, spec: StateSpec) -> TrainState:
    """The shapes and shardings of a distiller's state."""
    teacher = unbox(abstract_params(run.denoiser))
    context = {"teacher_params": teacher} if parts.keeps_teacher else {}
    return spec.abstract(parts.shapes(run), context)


def one_round(name: str) -> Rounds:
    """The round of a distiller that has only one; its settings are the config's field `name`."""
    parts = PARTS[name]

    def job(run: Run, number: int) -> TrainingJob:
        config = getattr(run.config, name).train
        step_fn = make_train_step(parts.loss(run), config)
        spec, key = StateSpec(config, run.mesh), purpose_key(run.config.seed, f"{name}.init")
        abstract = abstract_state(parts, run, spec)

        def start() -> TrainState:
            teacher = run.delivered(run.workdir.teacher, run.denoiser, "distill")
            source = parts.source(run) if parts.source else teacher
            begin = jax.jit(
                lambda teacher, source: parts.begin(run, teacher, source, key),
                out_shardings=tree_shardings(parts.shapes(run), RULES, run.mesh),
            )
            context = {"teacher_params": teacher} if parts.keeps_teacher else {}
            return spec.from_params(begin(teacher, source), context)

        return TrainingJob(run, name, number, config, step_fn, start, abstract)

    def deliver(run: Run, number: int, state: TrainState) -> None:
        settings = to_mapping(getattr(run.config, name))
        del settings["train"]
        run.deliver(
            run.workdir.round(number, name),
            parts.network(run),
            averaged(state)[STUDENT] if parts.fake else averaged(state),
            stage=name,
            round=number,
            settings=settings,
        )

    return Rounds(
        count=lambda _config: 1,
        job=job,
        deliver=deliver,
        describe=lambda _config, _number: parts.description,
    )


def _mixture_loss(run: Networks) -> LossFn:
    return objectives.mixture_loss(run.diffusion_of(run.mixture), run.diffusion, run.config.mixture)


def _mmd_loss(diffusion: MaskedDiffusion, config: MmdConfig) -> LossFn:
    network: Any = diffusion.denoiser
    features = functools.partial(network.layer_states, layer=config.layer)
    return objectives.mmd_loss(diffusion, features, config)


def _coupled_idlm_loss(run: Networks) -> LossFn:
    student = run.diffusion_of(run.coupled)
    return objectives.coupled_idlm_loss(student, run.diffusion, run.config.coupled_idlm)


def _arranged(loss: Callable[..., LossFn], name: str, run: Networks) -> LossFn:
    """A loss of texts that may be packed in any way; its settings are the config's field `name`."""
    loss_of = functools.partial(loss, config=getattr(run.config, name))
    return objectives.arranged(loss_of, run.diffusion, run.sequences)


def _coupled_student(run: Run) -> Params:
    folder = run.workdir.round(run.config.coupled.num_rounds, COUPLED)
    return run.delivered(folder, run.coupled, "distill")


PARTS = {
    "alpha": Parts(
        "blocks of real texts, without a teacher",
        functools.partial(_arranged, objectives.alpha_loss, "alpha"),
        keeps_teacher=False,
    ),
    "mixture": Parts(
        "for each text, one of several students learns what the teacher's calls reveal together",
        _mixture_loss,
        network=lambda run: run.mixture,
    ),
    "mmd": Parts(
        "completions are compared with real texts by the teacher's hidden states",
        functools.partial(_arranged, _mmd_loss, "mmd"),
    ),
    "idlm": Parts(
        "a fake teacher learns the student's texts, and the student learns what the teacher says about them",
        functools.partial(_arranged, objectives.idlm_loss, "idlm"),
        fake=True,
    ),
    "coupled_idlm": Parts(
        "a fake teacher learns the noise-coupled student's texts, and the student learns what the teacher "
        "says about them",
        _coupled_idlm_loss,
        network=lambda run: run.coupled,
        source=_coupled_student,
        fake=True,
    ),
}
