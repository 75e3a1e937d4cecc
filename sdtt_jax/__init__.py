"""SDTT, self-distillation through time, for masked diffusion language models in JAX.

    import jax, sdtt_jax
    model = sdtt_jax.load("runs/demo")
    tokens = model.sample(jax.random.key(0), num_samples=4, num_steps=8)
    print(*map(model.tokenizer.decode, tokens), sep="\\n")

A name is imported when it is first asked for, so that a user of one part does not wait for the others.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

import sdtt_jax.renamed  # noqa: F401 - a module that has moved is answered by its new name
from sdtt_jax.version import __version__ as __version__

# Every public name, by the module that has it. Type checkers read the imports below; a test compares the two.
_MODULES = {
    "sdtt_jax.causal.nll": ("causal_nll",),
    "sdtt_jax.data": ("open_split", "prepare"),
    "sdtt_jax.diffusion.denoiser": ("DenoiserLike", "MaskedDiffusion"),
    "sdtt_jax.diffusion.forward": ("q_xt", "sample_t", "subs_log_probs"),
    "sdtt_jax.diffusion.nelbo": ("NelboConfig", "denoising_terms", "nelbo"),
    "sdtt_jax.diffusion.sampler": ("SamplerConfig", "SamplerState", "prior_sample", "sample"),
    "sdtt_jax.diffusion.schedule": ("Schedule", "ScheduleConfig", "make_schedule"),
    "sdtt_jax.distillation.loss": ("distillation_terms", "divergence_terms"),
    "sdtt_jax.distillation.rounds": ("DistillConfig", "Student", "next_round", "round_dt"),
    "sdtt_jax.distillation.targets": ("teacher_targets",),
    "sdtt_jax.interchange.load": (
        "load",
        "load_mdlm_small",
        "load_scaling_student",
        "load_scaling_teacher",
        "load_small_student",
    ),
    "sdtt_jax.model.causal": ("CausalModel",),
    "sdtt_jax.model.masked": ("Model",),
    "sdtt_jax.parallel.placement": ("unbox",),
    "sdtt_jax.training.config": ("TrainConfig",),
    "sdtt_jax.training.loop": ("train",),
    "sdtt_jax.training.optimizers": ("OptimizerConfig",),
    "sdtt_jax.training.state": ("StateSpec", "TrainState"),
    "sdtt_jax.training.step": ("Loss", "make_train_step"),
    "sdtt_jax.objectives": ("distill_loss", "judge_loss", "teacher_loss"),
    "sdtt_jax.networks": ("CausalConfig", "Denoiser", "DenoiserConfig"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_MODULE_OF)

if TYPE_CHECKING:
    from sdtt_jax.causal.nll import causal_nll as causal_nll
    from sdtt_jax.data import open_split as open_split
    from sdtt_jax.data import prepare as prepare
    from sdtt_jax.diffusion.denoiser import DenoiserLike as DenoiserLike
    from sdtt_jax.diffusion.denoiser import MaskedDiffusion as MaskedDiffusion
    from sdtt_jax.diffusion.forward import q_xt as q_xt
    from sdtt_jax.diffusion.forward import sample_t as sample_t
    from sdtt_jax.diffusion.forward import subs_log_probs as subs_log_probs
    from sdtt_jax.diffusion.nelbo import NelboConfig as NelboConfig
    from sdtt_jax.diffusion.nelbo import denoising_terms as denoising_terms
    from sdtt_jax.diffusion.nelbo import nelbo as nelbo
    from sdtt_jax.diffusion.sampler import SamplerConfig as SamplerConfig
    from sdtt_jax.diffusion.sampler import SamplerState as SamplerState
    from sdtt_jax.diffusion.sampler import prior_sample as prior_sample
    from sdtt_jax.diffusion.sampler import sample as sample
    from sdtt_jax.diffusion.schedule import Schedule as Schedule
    from sdtt_jax.diffusion.schedule import ScheduleConfig as ScheduleConfig
    from sdtt_jax.diffusion.schedule import make_schedule as make_schedule
    from sdtt_jax.distillation.loss import distillation_terms as distillation_terms
    from sdtt_jax.distillation.loss import divergence_terms as divergence_terms
    from sdtt_jax.distillation.rounds import DistillConfig as DistillConfig
    from sdtt_jax.distillation.rounds import Student as Student
    from sdtt_jax.distillation.rounds import next_round as next_round
    from sdtt_jax.distillation.rounds import round_dt as round_dt
    from sdtt_jax.distillation.targets import teacher_targets as teacher_targets
    from sdtt_jax.interchange.load import load as load
    from sdtt_jax.interchange.load import load_mdlm_small as load_mdlm_small
    from sdtt_jax.interchange.load import load_scaling_student as load_scaling_student
    from sdtt_jax.interchange.load import load_scaling_teacher as load_scaling_teacher
    from sdtt_jax.interchange.load import load_small_student as load_small_student
    from sdtt_jax.model.causal import CausalModel as CausalModel
    from sdtt_jax.model.masked import Model as Model
    from sdtt_jax.networks import CausalConfig as CausalConfig
    from sdtt_jax.networks import Denoiser as Denoiser
    from sdtt_jax.networks import DenoiserConfig as DenoiserConfig
    from sdtt_jax.objectives import distill_loss as distill_loss
    from sdtt_jax.objectives import judge_loss as judge_loss
    from sdtt_jax.objectives import teacher_loss as teacher_loss
    from sdtt_jax.parallel.placement import unbox as unbox
    from sdtt_jax.training.config import TrainConfig as TrainConfig
    from sdtt_jax.training.loop import train as train
    from sdtt_jax.training.optimizers import OptimizerConfig as OptimizerConfig
    from sdtt_jax.training.state import StateSpec as StateSpec
    from sdtt_jax.training.state import TrainState as TrainState
    from sdtt_jax.training.step import Loss as Loss
    from sdtt_jax.training.step import make_train_step as make_train_step


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        # With `obj` Python looks among its names for one that was probably meant.
        module = sys.modules[__name__]
        raise AttributeError(f"module 'sdtt_jax' has no attribute {name!r}", name=name, obj=module)
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
