"""Masked diffusion: schedules, the forward process, the NELBO and the sampler, as pure functions."""

from sdtt_jax.diffusion.forward import SAMPLING_EPS, DenoiserLike, q_xt, sample_t, subs_log_probs
from sdtt_jax.diffusion.nelbo import denoising_terms, nelbo
from sdtt_jax.diffusion.sampler import SamplerConfig, SamplerState, prior_sample, sample
from sdtt_jax.diffusion.schedule import Schedule, ScheduleConfig, make_schedule

__all__ = [
    "SAMPLING_EPS",
    "DenoiserLike",
    "SamplerConfig",
    "SamplerState",
    "Schedule",
    "ScheduleConfig",
    "denoising_terms",
    "make_schedule",
    "nelbo",
    "prior_sample",
    "q_xt",
    "sample",
    "sample_t",
    "subs_log_probs",
]
