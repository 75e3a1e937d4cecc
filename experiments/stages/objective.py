"""The loss and the state of the teacher and of SDTT's rounds, made from the networks of a run alone.

Runs train with these. `launch.ahead` compiles them for runs whose data and parameters do not exist yet.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from experiments.distillers import COUPLED, DISTILLERS
from experiments.settings import RunConfig
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.rounds import Student, next_round
from sdtt_jax.keys import purpose_key
from sdtt_jax.networks import CausalNetwork
from sdtt_jax.networks.base import abstract_params
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.networks.kinds import network_of
from sdtt_jax.networks.lora import LoraConfig, init_adapters
from sdtt_jax.objectives import adaptation_loss, arranged, distill_loss, lora_loss, teacher_loss
from sdtt_jax.ops.sequences import Sequences
from sdtt_jax.parallel.placement import unbox
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import LossFn
from sdtt_jax.typing import Params


class Networks(abc.ABC):
    """The networks of a run, or of one that is only compiled."""

    config: RunConfig

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, MASK not among them."""

    @functools.cached_property
    def denoiser(self) -> Any:
        """The network of teacher and students: of the config's sizes, unless it is a published one."""
        return network_of(self.config.denoiser(self.vocab_size))

    @property
    def was_causal(self) -> bool:
        """Whether the denoiser's network comes from a causal model."""
        return False

    @property
    @abc.abstractmethod
    def sequences(self) -> Sequences | None:
        """How sequences are packed; None where all positions of a sequence are alike."""

    @functools.cached_property
    def diffusion(self) -> MaskedDiffusion:
        """Denoiser and noise schedule."""
        return MaskedDiffusion(self.denoiser, make_schedule(self.config.schedule))

    def diffusion_of(self, network: Any) -> MaskedDiffusion:
        """Another network with the same noise schedule."""
        return dataclasses.replace(self.diffusion, denoiser=network)

    def student(self, distiller: str) -> Any:
        """The network of a distiller's students: the denoiser, or one that sees noise."""
        section = DISTILLERS[distiller].sees
        if not section:
            return self.denoiser
        return CoupledDenoiser(self.config.seeing_denoiser(section, self.vocab_size))

    @functools.cached_property
    def coupled(self) -> CoupledDenoiser:
        """The noise-coupled student."""
        student: CoupledDenoiser = self.student(COUPLED)
        return student

    @functools.cached_property
    def judge(self) -> CausalNetwork:
        """The causal network that judges texts, of the config's sizes."""
        return CausalNetwork(self.config.causal(self.vocab_size))

    @functools.cached_property
    def skeleton(self) -> CausalNetwork:
        """The causal network that is trained on every n-th token."""
        sizes, every = self.config.causal(self.vocab_size), self.config.judge.skeleton
        return CausalNetwork(dataclasses.replace(sizes, length=-(-sizes.length // every)))


def init_params(run: Networks, lora: LoraConfig) -> Params:
    """Makes fresh, boxed parameters of what a stage trains: adapters, or with rank 0 the whole denoiser."""
    key = purpose_key(run.config.seed, "lora.init")
    return init_adapters(run.denoiser, lora, key) if lora.rank else run.denoiser.init(key)


def teacher_objective(run: Networks) -> LossFn:
    """The loss of the teacher. If its network was causal, batches also say how far attention is opened."""
    loss = adaptation_loss if run.was_causal else teacher_loss
    return _objective(
        run, functools.partial(loss, config=run.config.teacher), run.config.teacher.lora
    )


def distill_objective(run: Networks) -> LossFn:
    """The loss of all rounds: dt and the teacher are in the state's context."""
    config = run.config.distill
    return _objective(run, functools.partial(distill_loss, config=config), config.lora)


def abstract_round(run: Networks, number: int, spec: StateSpec) -> TrainState:
    """The shapes and shardings of the state in a round of SDTT, adapters without their base."""
    config = run.config.distill
    if config.lora.rank:
        boxed = jax.eval_shape(functools.partial(init_params, run, config.lora))
    else:
        boxed = abstract_params(run.denoiser)
    student = jax.eval_shape(lambda p: next_round(config, Student(p), number), unbox(boxed))
    return spec.abstract(boxed, student.context)


def _objective(
    run: Networks, loss_of: Callable[[MaskedDiffusion], LossFn], lora: LoraConfig
) -> LossFn:
    loss = arranged(loss_of, run.diffusion, run.sequences)
    return lora_loss(loss, lora) if lora.rank else loss
