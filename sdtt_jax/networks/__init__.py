"""The networks, as pure functions of their parameters."""

from sdtt_jax.networks.config import CausalConfig, DenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser, make_denoiser

__all__ = ["CausalConfig", "Denoiser", "DenoiserConfig", "make_denoiser"]
