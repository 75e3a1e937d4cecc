"""The networks, as pure functions of their parameters.

The only package that may use `flax.linen`. It may use the operations on arrays and the packages below them.
"""

from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import CausalConfig, DenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser

__all__ = ["CausalConfig", "CausalNetwork", "Denoiser", "DenoiserConfig"]
