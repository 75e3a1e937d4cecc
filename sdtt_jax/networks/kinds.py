"""The kinds of network: one row each, with the name that checkpoints store, its config and its functions.

A new kind of network is a config class, a module with its pure functions, and a row here.
"""

from typing import Any, NamedTuple

from sdtt_jax.networks.base import Network
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import (
    CausalConfig,
    CoupledConfig,
    DenoiserConfig,
    GPT2Config,
    GPT2DenoiserConfig,
    LlamaConfig,
    LlamaDenoiserConfig,
    TransformerConfig,
)
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.networks.denoiser import Denoiser
from sdtt_jax.networks.gpt2 import GPT2Denoiser, GPT2Network
from sdtt_jax.networks.llama import LlamaDenoiser, LlamaNetwork

DENOISER, COUPLED, CAUSAL, GPT2 = "denoiser", "coupled", "causal", "gpt2"
LLAMA, LLAMA_DENOISER, GPT2_DENOISER = "llama", "llama-denoiser", "gpt2-denoiser"


class Kind(NamedTuple):
    """A kind of network."""

    config: type[TransformerConfig]  # the dataclass of its sizes
    network: type[Any]  # makes its pure functions from such a config
    title: str = ""  # what a model card calls it; if empty, by its name


KINDS = {
    DENOISER: Kind(DenoiserConfig, Denoiser, "DiT"),
    COUPLED: Kind(CoupledConfig, CoupledDenoiser, "DiT that sees noise"),
    CAUSAL: Kind(CausalConfig, CausalNetwork, "transformer"),
    GPT2: Kind(GPT2Config, GPT2Network, "GPT-2"),
    GPT2_DENOISER: Kind(GPT2DenoiserConfig, GPT2Denoiser, "GPT-2"),
    LLAMA: Kind(LlamaConfig, LlamaNetwork, "Llama"),
    LLAMA_DENOISER: Kind(LlamaDenoiserConfig, LlamaDenoiser, "Llama"),
}
# Those of this library that a run cannot be asked for by name; others may be added to the table.
LIBRARY = {*KINDS} - {DENOISER}
# Names that checkpoints of earlier versions store.
_EARLIER = {"autoregressive": CAUSAL}


def kind_of(network: Network) -> str:
    """The name of a network's kind."""
    return next(name for name, kind in KINDS.items() if type(network) is kind.network)


def network_of(config: TransformerConfig) -> Any:
    """The network of a config; each kind has a config class of its own."""
    return next(kind.network for kind in KINDS.values() if type(config) is kind.config)(config)


def stored_kind(name: Any) -> str | None:
    """This version's name of the kind that a checkpoint calls `name`; None if there is no such kind."""
    name = _EARLIER.get(name, name)
    return name if name in KINDS else None
