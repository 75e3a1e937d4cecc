"""SDTT, self-distillation through time, for masked diffusion language models in JAX.

    import jax, sdtt_jax
    model = sdtt_jax.load("runs/demo")
    tokens = model.sample(jax.random.key(0), num_samples=4, num_steps=8)
    print(*map(model.tokenizer.decode, tokens), sep="\\n")

A name is imported when it is first asked for, so that a user of one part does not wait for the others.
"""

import sys

from etils import epy

import sdtt_jax.renamed  # noqa: F401 - a module that has moved is answered by its new name
from sdtt_jax.version import __version__ as __version__

with epy.lazy_api_imports(globals()):
    from sdtt_jax.causal.nll import causal_nll as causal_nll
    from sdtt_jax.data import open_split as open_split
    from sdtt_jax.data import prepare as prepare
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
    from sdtt_jax.interface import DenoiserLike as DenoiserLike
    from sdtt_jax.model.causal import CausalModel as CausalModel
    from sdtt_jax.model.masked import Model as Model
    from sdtt_jax.networks import CausalConfig as CausalConfig
    from sdtt_jax.networks import Denoiser as Denoiser
    from sdtt_jax.networks import DenoiserConfig as DenoiserConfig
    from sdtt_jax.objectives import distill_loss as distill_loss
    from sdtt_jax.objectives import judge_loss as judge_loss
    from sdtt_jax.objectives import teacher_loss as teacher_loss
    from sdtt_jax.parallel.mesh import MeshConfig as MeshConfig
    from sdtt_jax.parallel.mesh import make_mesh as make_mesh
    from sdtt_jax.parallel.placement import unbox as unbox
    from sdtt_jax.training.config import TrainConfig as TrainConfig
    from sdtt_jax.training.loop import train as train
    from sdtt_jax.training.optimizers import OptimizerConfig as OptimizerConfig
    from sdtt_jax.training.state import StateSpec as StateSpec
    from sdtt_jax.training.state import TrainState as TrainState
    from sdtt_jax.training.step import Loss as Loss
    from sdtt_jax.training.step import make_train_step as make_train_step

# The names imported above are in `dir`, but are not globals yet.
__all__ = [name for name in dir(sys.modules[__name__]) if name not in globals()]
