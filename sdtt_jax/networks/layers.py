"""Linen layers that the denoiser and the causal transformer share, with their logical axes."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sdtt_jax.networks.attention import ATTENTION, attend, attend_along
from sdtt_jax.networks.base import ADAPTERS
from sdtt_jax.networks.cache import LayerCache, LayerPast, attend_cached, attend_visible
from sdtt_jax.networks.config import Numerics, TransformerConfig
from sdtt_jax.networks.products import biased, looked_up, widened_product
from sdtt_jax.ops.categorical import NEG_INFINITY

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what the reference's linear layers start from.
KERNEL_INIT_SCALE = 1.0 / 3.0
NORM_EPSILON = 1e-5
# The name that every linear layer's result carries, and the names that each remat policy but "none" saves.
LINEAR = "linear"
SAVED = {"dots": (LINEAR, ATTENTION), "attention": (ATTENTION,), "full": ()}

Initializer = Callable[..., jax.Array]


def fan_in_uniform(in_axes: Sequence[int], out_axes: Sequence[int]) -> Initializer:
    """An initializer, uniform in ±1/sqrt(fan_in).

    Args:
      in_axes, out_axes: axes of the kernel that are contracted, and those that are not.
    """
    return nn.initializers.variance_scaling(
        KERNEL_INIT_SCALE, "fan_in", "uniform", in_axis=in_axes, out_axis=out_axes
    )


def parameter(
    module: nn.Module,
    name: str,
    init: Initializer,
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
) -> jax.Array:
    """A float32 parameter of `module` with logical axis names.

    Args:
      module: the module that the parameter belongs to, in whose call or `setup` this runs.
      name: its name.
      init: its initializer.
      axes: a logical name, or None, for each axis.
      shape: its shape.

    Raises:
      ValueError: the parameter that was given has another shape.
    """
    # Linen would trace the initializer to compare shapes: 7 % of tracing and lowering a training step.
    if module.has_variable("params", name):
        given: Any = nn.meta.unbox(module.get_variable("params", name))
        if given.shape != shape:
            raise ValueError(f"The parameter {name} has shape {given.shape}, its layer {shape}.")
        return given
    value: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
    return value


class Linear(nn.Module):
    """`x @ kernel + bias` over one or several trailing axes."""

    # in_shape, out_shape: trailing axes of the input that are contracted, and those that replace them.
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    # Logical names of the kernel's axes, `len(in_shape) + len(out_shape)` of them.
    axes: tuple[str | None, ...]
    bias: bool = True  # add a bias (starts at zero)
    zero: bool = False  # start the kernel at zero
    numerics: Numerics = Numerics()
    widens: bool = False  # sums and result are float32, whatever the activations are
    flat: bool = False  # axes (heads, kv) of the kernel are one axis of input and result

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n_in, n_out = len(self.in_shape), len(self.out_shape)
        init = (
            nn.initializers.zeros
            if self.zero
            else fan_in_uniform(tuple(range(n_in)), tuple(range(n_in, n_in + n_out)))
        )
        kernel = parameter(self, "kernel", init, self.axes, self.in_shape + self.out_shape)
        in_shape, out_shape = self.in_shape, self.out_shape
        dtype, products = self.numerics
        widens = self.widens or dtype == "float32"
        if self.flat:
            in_shape = _heads_as_one(in_shape, self.axes[:n_in])
            out_shape = _heads_as_one(out_shape, self.axes[n_in:])
            # Left to itself, the TPU compiler splits heads again within the product, puts the rows last (an
            # axis of 64 would be padded to 128), and moves them back before the next kernel: 137 GB of memory
            # traffic instead of 121 for a distillation step at 12 x 768 and 32 x 1024 tokens.
            kernel = kernel if widens else kernel.astype(products)
            kernel = jax.lax.optimization_barrier(kernel.reshape(*in_shape, *out_shape))
        # One [rows, features] matmul: on CPU it is the form that reaches the matmul rate. The other axes
        # are kept, so that a mesh can split heads without a reshape across the split.
        rows = x.reshape(-1, *in_shape).astype(dtype)
        if widens:
            features = rows.reshape(len(rows), -1)
            y = widened_product(features, kernel.reshape(-1, *out_shape), products)
        else:
            contract = (tuple(range(1, 1 + len(in_shape))), tuple(range(len(in_shape))))
            y = jax.lax.dot_general(rows, kernel.astype(dtype), (contract, ((), ())))
        if self.has_variable(ADAPTERS, "a"):
            y += self._adapted(rows, in_shape, out_shape).astype(y.dtype)
        y = y.reshape(*x.shape[: x.ndim - len(in_shape)], *out_shape)
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, self.axes[n_in:], self.out_shape)
            y = biased(y, bias.reshape(out_shape))
        return checkpoint_name(y, LINEAR)

    def _adapted(self, rows: jax.Array, in_shape: tuple[int, ...], out_shape: Any) -> jax.Array:
        """What the low-rank adapter adds (`networks.lora`), float32."""
        a: Any = self.get_variable(ADAPTERS, "a")
        b: Any = self.get_variable(ADAPTERS, "b")
        dtype, products = self.numerics
        low = widened_product(rows, a.reshape(*in_shape, -1), products).astype(dtype)
        return widened_product(low, b.reshape(len(b), *out_shape), products)


def _heads_as_one(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> tuple[int, ...]:
    """`shape` with the features of all heads as one axis, where it ends with axes (heads, kv)."""
    return (*shape[:-2], shape[-2] * shape[-1]) if axes[-1] == "kv" else shape


def attention_inputs(config: TransformerConfig, x: jax.Array, *, bias: bool) -> jax.Array:
    """`x: [batch, length, embed]` to query, key and value, `[batch, length, 3, heads * head_dim]`.

    The parameters `attn_qkv` belong to the module that calls this.
    """
    c = config
    shape, axes = (3, c.num_heads, c.head_dim), ("embed", None, "heads", "kv")
    layer = Linear(
        (c.embed_dim,), shape, axes, bias=bias, numerics=c.numerics, flat=True, name="attn_qkv"
    )
    return layer(x)


def queries_keys_values(config: TransformerConfig, x: jax.Array, *, bias: bool) -> list[jax.Array]:
    """The query, key and value of `attention_inputs`, `[batch, length, heads, head_dim]` each."""
    packed = attention_inputs(config, x, bias=bias)
    heads = (*packed.shape[:-1], config.num_heads, config.head_dim)
    # Split rather than indexed: the gradient of a split is one concatenation, that of three indices the sum
    # of three padded arrays (gradient of a block, 12 x 768 x 1024 on two cores: 134 -> 107 ms).
    return [jnp.squeeze(part, axis=2) for part in jnp.split(packed.reshape(heads), 3, axis=2)]


def merged_heads(config: TransformerConfig, mixed: jax.Array, *, bias: bool) -> jax.Array:
    """Projects what attention returned to `[batch, length, embed]`.

    The parameters `attn_out` belong to the module that calls this.

    Args:
      config: sizes.
      mixed: `[batch, length, heads, head_dim]` or `[batch, length, heads * head_dim]`.
      bias: add a bias.
    """
    c = config
    shape, axes = (c.num_heads, c.head_dim), ("heads", "kv", "embed")
    projection = Linear(
        shape, (c.embed_dim,), axes, bias=bias, numerics=c.numerics, flat=True, name="attn_out"
    )
    return projection(mixed.reshape(*mixed.shape[:2], -1))


def scan_blocks(block: type[nn.Module], config: TransformerConfig) -> nn.Module:
    """`config.num_layers` of `block` as one scanned module, whose parameters have a leading layer axis.

    It is called like a block, `(x, past, shared)`, where `past` has a layer axis too, and returns `x` and,
    stacked, what the blocks return in addition.

    Args:
      block: class of the module of one layer.
      config: its sizes, remat policy and `unroll`.
    """
    if config.remat != "none":
        policy = jax.checkpoint_policies.save_only_these_names(*SAVED[config.remat])
        # Within a scan XLA merges nothing across the boundary anyway, so `prevent_cse` is not needed.
        block = nn.remat(block, prevent_cse=False, policy=policy)
    return nn.scan(
        block,
        variable_axes={"params": 0, ADAPTERS: 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=config.num_layers,
        unroll=config.unroll,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config)


class DecoderBlock(nn.Module):
    """A block of `DecoderOnly`: attention and MLP, each after a norm and added to its input.

    A subclass has `norm(name)`, which makes a norm, and `heads(y, *rotary)`, which returns query, key and
    value, `[batch, length, heads, head_dim]` each.
    """

    config: Any
    bias: ClassVar[bool] = False  # whether the projection of what attention returns has one

    @nn.compact
    def __call__(
        self, x: jax.Array, past: LayerPast | LayerCache | None, shared: tuple[Any, ...]
    ) -> tuple[jax.Array, LayerPast | LayerCache | None]:
        c = self.config
        *rotary, used, segments, edges = shared
        query, key, value = self.heads(self.norm("norm1")(x), *rotary)
        new: LayerPast | LayerCache | None = None
        if isinstance(past, LayerCache):
            mixed, new = attend_cached(query, key, value, past, used, edges)
        elif past is not None:
            mixed, new = attend_visible(query, key, value, past, edges)
        elif edges is not None:
            mixed = attend_along(query, key, value, edges, segments)
        else:
            mixed = attend(query, key, value, causal=c.is_causal, segments=segments)
        x = x + merged_heads(c, mixed, bias=self.bias)
        x = x + self.mlp()(self.norm("norm2")(x))
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), new

    def mlp(self) -> nn.Module:
        c = self.config
        return Mlp(c.embed_dim, c.mlp_ratio * c.embed_dim, c.numerics, name="mlp")


class DecoderOnly(nn.Module):
    """A network that can continue what is in a cache.

    A subclass has `block`, the class of its blocks; `setup`, which makes `blocks` (`scan_blocks`), `final`,
    the last norm, and `head`, unless it has its own `logits`; and `start(tokens, positions)`, which returns
    what the first block reads and the rotary tables, or (). Each block gets `(*rotary, used, segments,
    edges)` as its argument `shared`.
    """

    config: Any
    block: ClassVar[type[DecoderBlock]]

    def decode(
        self,
        tokens: jax.Array,
        past: Any,
        used: jax.Array | int | None,
        segments: jax.Array | None = None,
        edges: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Hidden states of tokens that follow `used` others, and their keys and values for a cache."""
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32) + (0 if used is None else used)
        x, rotary = self.start(tokens, positions)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
        x, new = self.blocks(x, past, (*rotary, used, segments, edges))
        return self.final(x), new

    def hidden(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        edges: jax.Array | None = None,
    ) -> jax.Array:
        """Hidden states of whole sequences."""
        return self.decode(tokens, None, None, segments, edges)[0]

    def logits(self, hidden: jax.Array) -> jax.Array:
        return self.head(hidden)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.logits(self.hidden(tokens))


def spread(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector of features at every position of `x`.

    Args:
      vector: `[dim]`, or anything that broadcasts to `x`.
      x: `[..., dim]`.

    Returns:
      The shape of `x`; a vector that has axes of its own for the others is returned as it is.
    """
    if vector.ndim > 1:
        return vector
    # The gradient of a product with `[dim]` itself is summed over the axes longer than one. XLA's CPU backend
    # (YNNPACK) sums `[1, 1024, 768]` over its second axis in 9.4 ms, over its first two in 0.14.
    return jax.lax.broadcast_in_dim(vector, x.shape, (x.ndim - 1,))


class LayerNorm(nn.Module):
    """Layer normalisation with a scale and no bias, computed in float32."""

    dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), (self.dim,))
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + NORM_EPSILON)
        return (normed * spread(scale, x)).astype(x.dtype)


class Embedding(nn.Module):
    """Embedding `[rows, embed]`, of tokens or of anything else that is numbered."""

    rows: int
    dim: int
    numerics: Numerics = Numerics()
    initializer: Initializer = fan_in_uniform((1,), (0,))  # ±1/sqrt(embed)
    axis: str | None = "vocab"  # logical name of the rows' axis

    def setup(self) -> None:
        axes, shape = (self.axis, "embed"), (self.rows, self.dim)
        self.embedding = parameter(self, "embedding", self.initializer, axes, shape)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return looked_up(self.embedding, tokens, jnp.dtype(self.numerics.dtype), self.axis)

    def attend(self, hidden: jax.Array) -> jax.Array:
        """The head that is tied to the embedding: `[..., embed]` → `[..., rows]` float32."""
        dtype, products = self.numerics
        rows = hidden.reshape(-1, self.dim).astype(dtype)
        logits = widened_product(rows, self.embedding.T, products)
        return logits.reshape(*hidden.shape[:-1], self.rows)


class Mlp(nn.Module):
    """Linear, tanh-GELU, linear."""

    dim: int
    hidden: int
    numerics: Numerics = Numerics()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inwards, outwards, numerics = ("embed", "mlp"), ("mlp", "embed"), self.numerics
        x = Linear((self.dim,), (self.hidden,), inwards, numerics=numerics, name="up")(x)
        x = jax.nn.gelu(x, approximate=True)
        return Linear((self.hidden,), (self.dim,), outwards, numerics=numerics, name="down")(x)


class Head(nn.Module):
    """The last linear map, to float32 logits over the padded vocabulary."""

    dim: int  # features of the hidden state
    vocab: int  # columns that mean something (MASK included)
    padded_vocab: int  # columns of the kernel; those from `vocab` on come out as `NEG_INFINITY`
    numerics: Numerics = Numerics()
    bias: bool = True  # it has a bias

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        axes = ("embed", "vocab")
        logits = Linear(
            (self.dim,),
            (self.padded_vocab,),
            axes,
            bias=self.bias,
            zero=True,
            numerics=self.numerics,
            widens=True,  # never rounded to bfloat16, whose steps are 0.06 at a logit of 10
            name="linear",
        )(hidden)
        return without_padding(logits, self.vocab)


def without_padding(logits: jax.Array, columns: int) -> jax.Array:
    """`logits: [..., padded_vocab]`, with those from `columns` on made impossible."""
    return jnp.where(jnp.arange(logits.shape[-1], dtype=jnp.int32) < columns, logits, NEG_INFINITY)
