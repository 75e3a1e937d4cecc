"""A loaded causal model: GPT-2, the reference's baseline, or the judge of a run."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.causal.nll import next_token_nll
from sdtt_jax.causal.sampler import generate
from sdtt_jax.config import check_fields, require, whole
from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.keys import check_key
from sdtt_jax.model.base import Loaded
from sdtt_jax.model.batches import Written, batched
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.networks.config import TransformerConfig
from sdtt_jax.ops.categorical import Filters
from sdtt_jax.ops.sequences import Sequences, arrange, as_read, nats_per_token, preceded
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.parallel.processes import to_host
from sdtt_jax.typing import TokensLike


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CausalModel(Loaded):
    """A causal network with its parameters.

    Methods raise `ConfigError` for arrays that lack the documented shape, and for ids that do not exist.

    Attributes:
      network: the network, as pure functions.
    """

    network: CausalNetwork

    @property
    def config(self) -> TransformerConfig:
        return self.network.config

    @property
    def context(self) -> int:
        """The most positions to read at once: those that it has embeddings for, or that training had.

        Rotary embeddings have no end, but at positions beyond those of training the predictions mean nothing.
        """
        return self.network.max_length or self.config.length

    @property
    def as_helper(self) -> Helper:
        # The tokenizer's BOS precedes the first token.
        every = self.facts.get("every", 1 if self.facts.get("stage") == "judge" else 0)
        return Helper(self.params, self.network, self.text_tokenizer.bos_id, every)

    @property
    def every(self) -> int | None:
        """n, for a model of texts of every n-th token (`mode=skeleton`); None for any other."""
        every = self.facts.get("every", 1)
        return None if every == 1 else int(every)

    def require_whole_texts(self) -> None:
        """Raises `ConfigError` for a skeleton model, which models only every n-th token."""
        require(
            self.every is None,
            f"{self.facts['path']} models only one token in {self.every}; it can be the helper of "
            "mode=skeleton, but neither scores nor writes texts.",
        )

    def logits(self, tokens: TokensLike) -> jax.Array:
        """`[B, L]` int32 → `[B, L, V]` float32: position i predicts token i + 1; V without MASK.

        The first token of a row is usually BOS. A model of `documents` reads each text of a row on its own,
        as in training: an EOS is read as the BOS of the next text.
        """
        tokens = self.placed(as_rows(tokens, self.config.vocab_size))
        with self.on_mesh():
            return _logits(self.network, self.params, tokens, self.sequences)

    def log_probs(self, tokens: TokensLike) -> jax.Array:
        """Normalised `logits`: `[B, L, V]` float32."""
        with self.on_mesh():
            return _log_softmax(self.logits(tokens))

    def score(self, tokens: TokensLike) -> jax.Array:
        """-log p of each sequence `[B, L]` after BOS: `[B]` float32, nats per token that counts in training.

        Each text of a sequence begins after BOS and sees no other one; prompts and padding do not count.
        NaN if nothing does, as in a prompt alone. Values only, as `Model.score`; train on `causal_loss`.

        Raises:
          CheckpointError: the model has no tokenizer to say what BOS is.
          ConfigError: it is a model of every n-th token (`require_whole_texts`).
        """
        self.require_whole_texts()
        bos_id = self.text_tokenizer.bos_id
        tokens = self.placed(as_rows(tokens, self.config.vocab_size))
        with self.on_mesh():
            return _score(self.network, self.params, tokens, bos_id, self.sequences)

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

        For a model trained on instructions, BOS follows the prompt (even an empty one), as in training,
        unless the prompt spells it; it is one of the n tokens. After an EOS a model of `documents` begins a
        text of its own.

        Args:
          key: PRNG key; batch i is drawn with `fold_in(key, i)`.
          num_samples: how many.
          num_tokens: how many tokens follow the prompt.
          prompt: text that every sample begins with.
          batch_size: texts at once.
          **filters: temperature, top_k, top_p.

        Raises:
          ConfigError: more positions than the network has, a filter is out of range, or it is a model of
            every n-th token.
        """
        prompts = self.prior(num_samples, prompt)
        batches = self.batches(key, prompts, num_tokens, batch_size, **filters)
        return jax.device_put(np.concatenate([write().tokens for write in batches])[:, 1:])

    def prior(self, num_samples: int, prompt: str = "") -> np.ndarray:
        """What `sample` continues, as `batches` takes it: `[num_samples, n]` int32, BOS first."""
        whole(1, num_samples=num_samples)
        require(isinstance(prompt, str), f"prompt must be one text, not {prompt!r:.60}.")
        tokenizer = self.text_tokenizer
        text = tokenizer.encode_part(prompt)
        mark = [] if self.prompt_end in (None, *text) else [self.prompt_end]
        ids = np.concatenate([[tokenizer.bos_id], text, mark])
        return np.tile(ids.astype(np.int32), (num_samples, 1))

    def batches(
        self,
        key: jax.Array,
        prompts: np.ndarray,
        num_tokens: int,
        batch_size: int = 32,
        **filters: Any,
    ) -> list[Callable[[], Written]]:
        """Continues `prompts: [B, n]` int32: one function per batch writes texts `[rows, n + num_tokens]`.

        Args:
          key: PRNG key; batch i is drawn with `fold_in(key, i)`.
          prompts: with n at least 1, usually beginning with BOS.
          num_tokens: how many tokens follow, with one network call for each.
          batch_size: texts at once.
          **filters: temperature, top_k, top_p.
        """
        self.require_whole_texts()
        check_key(key)
        check_fields(Filters, filters, "sample")
        key, prompts = self.near(key), to_host(as_rows(prompts, self.config.vocab_size, "prompts"))

        def write(params: Any, index: jax.Array, prompt: jax.Array) -> Written:
            draw = jax.random.fold_in(key, index)
            tokens = generate(
                self.network, params, draw, prompt, num_tokens, self.sequences, **filters
            )
            return Written(tokens, np.full(len(prompt), num_tokens, np.int32))

        return batched(write, self.params, prompts, batch_size)


@functools.partial(jax.jit, static_argnames=("network", "sequences"))
def _logits(
    network: CausalNetwork, params: Any, tokens: jax.Array, sequences: Sequences | None
) -> jax.Array:
    logits = network.logits(params, network.hidden(params, *as_read(tokens, sequences)))
    return logits[..., : network.config.vocab_size]


_log_softmax = jax.jit(jax.nn.log_softmax)  # one program instead of one for each operation


@functools.partial(jax.jit, static_argnames=("network", "bos_id", "sequences"))
def _score(
    network: CausalNetwork,
    params: Any,
    tokens: jax.Array,
    bos_id: int,
    sequences: Sequences | None,
) -> jax.Array:
    arrangement = arrange(tokens, sequences)
    free = None if arrangement is None else arrangement.free
    scored = jnp.ones(tokens.shape, bool) if free is None else free
    read, segments = as_read(preceded(tokens, bos_id), sequences)
    return nats_per_token(next_token_nll(network, params, read, tokens, scored, segments), free)
