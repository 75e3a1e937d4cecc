"""A loaded causal model: GPT-2, the reference's baseline, or the judge of a run."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.causal.nll import causal_nll
from sdtt_jax.causal.sampler import generate
from sdtt_jax.config import positive
from sdtt_jax.model.base import Loaded
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import TransformerConfig
from sdtt_jax.parallel.mesh import full_batch


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CausalModel(Loaded):
    """A causal network with its parameters.

    Attributes:
      network: the network, as pure functions.
    """

    network: CausalNetwork

    @property
    def config(self) -> TransformerConfig:
        return self.network.config

    def logits(self, tokens: jax.Array) -> jax.Array:
        """`[B, L]` int32 → `[B, L, V]` float32: position i predicts token i + 1; V without MASK."""
        with self.on_mesh():
            return _logits(self.network, self.params, self.placed(tokens))

    def log_probs(self, tokens: jax.Array) -> jax.Array:
        """Normalised `logits`: `[B, L, V]` float32."""
        return jax.nn.log_softmax(self.logits(tokens))

    def score(self, tokens: jax.Array) -> jax.Array:
        """-log p of each sequence after BOS: `[B]` float32, nats per token.

        Raises:
          CheckpointError: the model has no tokenizer to say what BOS is.
        """
        bos_id = self.text_tokenizer.bos_id
        with self.on_mesh():
            return _score(self.network, self.params, self.placed(tokens), bos_id)

    def sample(
        self,
        key: jax.Array,
        num_samples: int,
        num_tokens: int,
        prompt: str = "",
        *,
        batch_size: int = 32,
        **filters: Any,
    ) -> jax.Array:
        """Texts `[num_samples, n + num_tokens]` int32, token by token with a key-value cache.

        Args:
          key: PRNG key.
          num_samples: how many.
          num_tokens: how many tokens follow the prompt.
          prompt: text of n tokens that every sample begins with.
          batch_size: texts at once, up to a multiple of the mesh's parts.
          **filters: temperature, top_k, top_p.

        Raises:
          ConfigError: more positions than the network has, or a filter is out of range.
        """
        positive(num_samples=num_samples, batch_size=batch_size)
        tokenizer = self.text_tokenizer
        size = full_batch(min(num_samples, batch_size), self.mesh)
        ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode_part(prompt)]).astype(np.int32)
        start = self.placed(np.tile(ids, (size, 1)))
        with self.on_mesh():
            texts = [
                generate(
                    self.network,
                    self.params,
                    jax.random.fold_in(key, i),
                    prompt=start,
                    num_tokens=num_tokens,
                    **filters,
                )
                for i in range(math.ceil(num_samples / size))
            ]
        return jnp.concatenate(texts)[:num_samples, 1:]


@functools.partial(jax.jit, static_argnums=0)
def _logits(network: CausalNetwork, params: Any, tokens: jax.Array) -> jax.Array:
    logits = network.logits(params, network.hidden(params, tokens))
    return logits[..., : network.config.vocab_size]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _score(network: CausalNetwork, params: Any, tokens: jax.Array, bos_id: int) -> jax.Array:
    return causal_nll(network, params, tokens, bos_id).mean(axis=-1)
