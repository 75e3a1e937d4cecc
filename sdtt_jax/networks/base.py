"""The base of every network here: pure functions of parameters, split before the head."""

import abc
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from sdtt_jax.config import require
from sdtt_jax.networks.config import AdaptedConfig, TransformerConfig
from sdtt_jax.ops.sequences import predicted_before
from sdtt_jax.parallel.placement import unbox
from sdtt_jax.trees import flat_leaves, leaf_name
from sdtt_jax.typing import Hidden, Key, Logits, Params, PerSequence, Segments, Tokens

# The name of the collection of adapters (`networks.lora`), and their key in the parameters' tree.
ADAPTERS = "adapters"


@dataclasses.dataclass(frozen=True)
class Network(abc.ABC):
    """A network as pure functions of its parameters (plain nested dicts)."""

    config: TransformerConfig  # sizes; vocabulary and length must be set

    def __post_init__(self) -> None:
        require(
            isinstance(self.config, TransformerConfig),
            f"config must be that of a network, such as DenoiserConfig(…), not {self.config!r:.60}.",
        )
        self.config.check_filled()

    @property
    def mask_id(self) -> int:
        return self.config.mask_id

    @property
    def padded_vocab(self) -> int:
        return self.config.padded_vocab

    @property
    @abc.abstractmethod
    def _module(self) -> nn.Module:
        """The Linen module; `hidden` and `logits` are two of its methods."""

    def init(self, key: Key) -> Params:
        """Fresh parameters, each leaf boxed with its logical axes (`sdtt_jax.unbox` removes them)."""
        tokens = jnp.zeros((1, 1), jnp.int32)  # no parameter's shape depends on the length
        return self._module.init(key, tokens)["params"]

    def head_params(self, params: Params) -> Params:
        """The part of `params` that `logits` reads: the head, or the embedding that it is tied to."""
        name = "head" if "head" in params else "embed"
        if name not in params:
            check_params(self, params)
        return {name: params[name]}

    def logits(self, params: Params, hidden: jax.Array) -> Logits:
        """Logits, with the columns of the padding at `NEG_INFINITY`.

        Args:
          params: all parameters, or what `head_params` returned.
          hidden: `[..., embed]`, final hidden states.

        Returns:
          `[..., padded_vocab]` float32.
        """
        logits: Any = self._module.apply(variables(params), hidden, method="logits")
        return logits

    def _apply(self, params: Params, *args: Any, method: Any) -> Any:
        """Calls a method of the module; the parameters, all of them, may include adapters."""
        try:
            return self._module.apply(variables(params), *args, method=method)
        except (FlaxError, KeyError, ValueError):
            # Perhaps because of a leaf that is missing, or is of another shape.
            check_params(self, params)
            raise


@functools.lru_cache(maxsize=32)
def abstract_params(network: Network) -> Params:
    """Shapes and dtypes of a network's parameters, boxed as `init` boxes them; traced once."""
    return jax.eval_shape(network.init, jax.random.key(0))


def check_params(network: Network, params: Params) -> None:
    """Raises `ConfigError` if a leaf that the network reads is missing, or is of another shape."""
    expected, given = (flat_leaves(unbox(tree)) for tree in (abstract_params(network), params))
    within = " (params['params'] has the leaves)" if "params" in params else ""
    for path, leaf in expected.items():
        found = f"is of shape {list(given[path].shape)}" if path in given else f"is missing{within}"
        require(
            path in given and given[path].shape == leaf.shape,
            f"params: {path} {found}; with num_layers={network.config.num_layers} and "
            f"embed_dim={network.config.embed_dim} the network reads one of {list(leaf.shape)}.",
        )


@dataclasses.dataclass(frozen=True)
class AdaptedDenoiser(Network):
    """A denoiser with a causal network's parameters; with `shift` it also predicts the next token.

    Its logits have a column for MASK too, which means nothing: losses and samplers leave it out (SUBS),
    except the divergences "mse" and "log-l1", which compare it as the reference code does.
    """

    config: AdaptedConfig

    def init_from(self, params: Params) -> Params:
        """A denoiser's parameters, unboxed, from a causal network's `params`.

        The embedding's row for MASK is the mean of all tokens, which favours none of them.
        """
        table = params["embed"]["embedding"]
        mean = table[: self.mask_id].mean(axis=0)
        return params | {"embed": {"embedding": table.at[self.mask_id].set(mean)}}

    def hidden(
        self,
        params: Params,
        tokens: Tokens,
        sigma: PerSequence | None = None,
        edges: jax.Array | None = None,
        *,
        segments: Segments | None = None,
    ) -> Hidden:
        """Final hidden states; the logits of the state at position i predict token i.

        If the network predicts the next token (`shift`), state i is the one that it computes at position
        i - 1 (`predicted_before`), so that losses, targets, samplers and bounds need not know of the
        shift.

        Args:
          params: parameters, unboxed.
          tokens: `[batch, length]` int32, MASK included.
          sigma: not used: the network sees how much is masked.
          edges: `[batch, length, length]` bool; position i sees position j where they are True or j <= i.
            None: as the config says.
          segments: attention is confined to each, and the first token of each has no predecessor; None: a
            sequence is one segment.

        Returns:
          `[batch, length, embed]`, the compute dtype.

        Raises:
          ConfigError: a GPT-2 is given segments, or more positions than it has embeddings for.
        """
        del sigma
        hidden: Any = self._apply(params, tokens, segments, edges, method="hidden")
        return predicted_before(hidden, segments) if self.config.shift else hidden


def rounded_once(config: TransformerConfig, params: Params) -> Params:
    """Rounds the kernels to the dtype of products once, for many forward calls with the same parameters.

    Values stay the same. On a CPU the rounding is an eighth of a generation at 12 x 768 with narrow products,
    and the copy takes half as much memory as the kernels. Only a network whose activations are wider than its
    products gets a copy: with bfloat16 throughout, which is for accelerators, this has not been measured.

    Args:
      config: the network's config.
      params: its parameters, unboxed, or those of a wrapper around it (`retrieval.Retrieving`), whose other
        parameters stay as they are.
    """
    dtype, products = config.numerics

    def cast(path: Any, leaf: Any) -> Any:
        *rooms, name = leaf_name(path).split("/")
        # The modulation multiplies activations without rounding them (`denoiser.Modulation`).
        inner = "blocks" in rooms and "adaln" not in rooms
        return leaf.astype(products) if name == "kernel" and (inner or "head" in rooms) else leaf

    return params if dtype == products else jax.tree_util.tree_map_with_path(cast, params)


def variables(params: Params) -> dict[str, Params]:
    """Parameters as Linen takes them, with adapters as a collection of their own."""
    own = {name: part for name, part in params.items() if name != ADAPTERS}
    return {"params": own} | ({ADAPTERS: params[ADAPTERS]} if ADAPTERS in params else {})


def block_variables(params: Params) -> dict[str, Params]:
    """The blocks' parameters as Linen takes one's, stacked."""
    return {name: part["blocks"] for name, part in variables(params).items()}


def of_blocks(params: Params, index: Any) -> Params:
    """`params` with only some blocks and their adapters; `index` applies to the axis of the blocks."""
    own = {"blocks": jax.tree.map(lambda leaf: leaf[index], params["blocks"])}
    if ADAPTERS in params:
        own |= {ADAPTERS: jax.tree.map(lambda leaf: leaf[index], params[ADAPTERS])}
    return params | own
