"""The networks as pure functions of their parameters, and the only room that knows Flax.

It may use `ops`, `parallel` and the modules at the top of the package.
"""

from sdtt_jax.networks.config import CausalConfig, DenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser, make_denoiser

__all__ = ["CausalConfig", "Denoiser", "DenoiserConfig", "make_denoiser"]
