"""The networks of a run, without its data or parameters; published models' sizes come from a table."""

import dataclasses
import functools
from typing import Any

from experiments.settings import RunConfig
from experiments.stages.objective import Networks
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.load import load_network
from sdtt_jax.networks import CausalNetwork
from sdtt_jax.networks.config import LlamaDenoiserConfig, PublishedConfig
from sdtt_jax.networks.kinds import network_of
from sdtt_jax.ops.sequences import Sequences

_LLADA = LlamaDenoiserConfig(
    vocab_size=126_463, length=4096, num_layers=32, embed_dim=4096, num_heads=32, mlp_dim=12_288,
    rotary_base=500_000.0,
)  # fmt: skip
_QWEN3 = LlamaDenoiserConfig(
    vocab_size=151_935, length=1024, num_layers=28, embed_dim=1024, num_heads=16, num_kv_heads=8,
    head_dim=128, mlp_dim=3072, norm_epsilon=1e-6, rotary_base=1e6, qk_norm=True, tied_head=True,
)  # fmt: skip
# As in their config.json.
KNOWN: dict[str, PublishedConfig] = {
    "GSAI-ML/LLaDA-8B-Base": _LLADA,
    "GSAI-ML/LLaDA-8B-Instruct": _LLADA,
    "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1": _QWEN3,
}


@dataclasses.dataclass(frozen=True)
class Planned(Networks):
    """The networks of a run whose vocabulary is known from its config.

    The sizes of a `published` model are in `KNOWN`, or its headers are read.
    """

    config: RunConfig

    @functools.cached_property
    def _base(self) -> PublishedConfig | None:
        name = self.config.published
        if not name:
            return None
        base = KNOWN.get(name.partition("@")[0]) or load_network(name).config
        if not isinstance(base, PublishedConfig):
            raise CheckpointError(
                f"{name} is neither of the Llama family nor a GPT-2; name one that is."
            )
        return base

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @functools.cached_property
    def denoiser(self) -> Any:
        if self._base is None:
            return super().denoiser
        return network_of(self.config.adapted(self._base))

    @property
    def was_causal(self) -> bool:
        return self._base is not None and isinstance(network_of(self._base), CausalNetwork)

    @property
    def sequences(self) -> Sequences:
        return Sequences(self.config.data.sequences, wrap=self.config.data.wrap)
