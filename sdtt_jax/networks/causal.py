"""The causal transformer: the paper's baseline, and the judge of the demo.

It has the denoiser's blocks without modulation (no time, no gates), a causal mask, and a key-value
cache for sampling. `CausalNetwork` is the interface of every causal network here, GPT-2 included.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sdtt_jax.config import require
from sdtt_jax.networks import layers
from sdtt_jax.networks.attention import rotary_tables, rotate
from sdtt_jax.networks.base import Network, block_variables, rounded_once
from sdtt_jax.networks.cache import KVCache, LayerCache, cache_for
from sdtt_jax.networks.config import DecoderOnlyConfig
from sdtt_jax.parallel.mesh import free_axes
from sdtt_jax.typing import Hidden, Params, Segments, Tokens


@flax.struct.dataclass
class Apart:
    """Parameters with each block's as arrays of their own, for many calls of few tokens."""

    whole: Params  # all of them, the blocks' stacked
    # Each block's, as Linen takes them; still stacked where a mesh splits parameters over fsdp.
    blocks: tuple[dict[str, Params], ...] | dict[str, Params]


@dataclasses.dataclass(frozen=True)
class CausalNetwork(Network):
    """A causal network as pure functions of its parameters (plain nested dicts).

    MASK and padding have impossible logits, so a softmax over all columns is one over the tokens.
    """

    config: DecoderOnlyConfig  # sizes; `vocab_size` counts the tokens that it can predict

    @property
    def max_length(self) -> int | None:
        """Most positions that the network has embeddings for; None where it has no limit."""
        return None

    @functools.cached_property
    def _module(self) -> layers.DecoderOnly:
        """The Linen module."""
        return CausalTransformer(self.config)

    def hidden(self, params: Params, tokens: Tokens, segments: Segments | None = None) -> Hidden:
        """Final hidden states; state i has seen tokens 0 … i, and its logits predict token i + 1.

        Args:
          params: parameters, unboxed.
          tokens: `[batch, length]` int32.
          segments: attention is confined to each; None: a sequence is one segment.

        Returns:
          `[batch, length, embed]`, the compute dtype.

        Raises:
          ConfigError: when the sequence is longer than `max_length`, or a GPT-2 is given segments.
        """
        return self._apply(params, tokens, segments, method="hidden")

    def init_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache for `batch` sequences of at most `length` positions.

        Raises:
          ConfigError: when `length` exceeds `max_length`.
        """
        require(
            self.max_length is None or length <= self.max_length,
            f"length={length} exceeds the {self.max_length} positions of this network; reduce it.",
        )
        return cache_for(self.config, batch, length)

    def apart(self, params: Params) -> Apart:
        """`params` with the blocks taken apart, which `decode` reads fastest; needs as much memory again.

        A scan over stacked blocks would copy them out of the stacks for every token: at 12 x 768, a text of
        1024 tokens takes 24 ms a token on two CPU cores so, and 15 with the blocks apart. Where a mesh splits
        parameters over fsdp, they stay stacked: XLA would gather blocks that are apart before a loop over
        tokens, and each device would hold all of them.
        """
        params = rounded_once(self.config, params)
        stacked = block_variables(params)
        if free_axes().get("fsdp", 1) > 1:
            return Apart(whole=params, blocks=stacked)
        blocks = (jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(self.config.num_layers))
        return Apart(whole=params, blocks=tuple(blocks))

    def decode(
        self,
        params: Params | Apart,
        tokens: Tokens,
        cache: KVCache,
        visible: jax.Array | None = None,
    ) -> tuple[Hidden, KVCache]:
        """Hidden states of the next `n` tokens, given those in the cache.

        Args:
          params: parameters, unboxed, over whose blocks a scan goes, which compiles soonest; or what `apart`
            returned for them, which runs fastest.
          tokens: `[batch, n]` int32, positions `cache.used` to `cache.used + n - 1`.
          cache: what `init_cache` or an earlier call returned, with room for `n` more positions.
          visible: `[batch, 1, n, capacity + n]` bool, which positions of the cache and of `tokens` each of
            these sees; None: all before it.

        Returns:
          `[batch, n, embed]`, equal to `hidden` of the whole sequence at these positions, and the new cache.
        """
        held = params if isinstance(params, Apart) else Apart(params, block_variables(params))
        positions = cache.used + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        x, rotary = self._apply(held.whole, tokens, positions, method="start")
        block = self._module.block(self.config)

        def read(x: jax.Array, given: tuple[Any, Any]) -> tuple[jax.Array, Any]:
            own, layer = given
            out: Any = block.apply(own, x, layer, (*rotary, cache.used, None, visible))
            return out

        caches: list[Any] = []
        if isinstance(held.blocks, tuple):
            for given in zip(held.blocks, cache.layers, strict=True):
                x, written = read(x, given)
                caches.append(written)
        else:
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *cache.layers)
            x, written = jax.lax.scan(read, x, (held.blocks, stacked))
            caches += [LayerCache(*pair) for pair in zip(*written, strict=True)]
        hidden = self._apply(held.whole, x, method=lambda module, x: module.final(x))
        return hidden, KVCache(layers=tuple(caches), used=cache.used + tokens.shape[1])


class CausalBlock(layers.DecoderBlock):
    """A block without biases, with rotary embeddings."""

    config: DecoderOnlyConfig

    def norm(self, name: str) -> layers.LayerNorm:
        return layers.LayerNorm(self.config.embed_dim, name=name)

    def heads(self, y: jax.Array, cos: jax.Array, sin: jax.Array) -> tuple[jax.Array, ...]:
        query, key, value = layers.queries_keys_values(self.config, y, bias=False)
        return rotate(query, cos, sin), rotate(key, cos, sin), value


class CausalTransformer(layers.DecoderOnly):
    """Embedding, scanned blocks, final norm, head."""

    config: DecoderOnlyConfig
    block = CausalBlock

    def setup(self) -> None:
        c = self.config
        self.embed = layers.Embedding(c.padded_vocab, c.embed_dim, c.numerics)
        self.blocks = layers.scan_blocks(CausalBlock, c)
        self.final = layers.LayerNorm(c.embed_dim)
        # The kernel has a column for MASK, as in the reference; no prediction can use it.
        self.head = layers.Head(c.embed_dim, c.vocab_size, c.padded_vocab, c.numerics)

    def start(self, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, Any]:
        return self.embed(tokens), rotary_tables(positions, self.config.head_dim)
