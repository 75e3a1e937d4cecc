"""The networks, as pure functions of their parameters."""

from sdtt_jax.models.config import CausalConfig, DenoiserConfig
from sdtt_jax.models.denoiser import Denoiser, make_denoiser

__all__ = ["CausalConfig", "Denoiser", "DenoiserConfig", "make_denoiser"]
