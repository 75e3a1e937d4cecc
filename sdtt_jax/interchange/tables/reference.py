"""The reference implementation's weights: the denoiser and the causal baseline.

On the model hub the names begin with `backbone.`, in the base models' checkpoints with
`backbone.backbone.`, in bare state dicts with nothing; reading finds out which. All sizes but the
length follow from the tensors.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.renaming import Entry, Table, find_prefix, read_params, write_params
from sdtt_jax.networks.attention import ROTARY_BASE
from sdtt_jax.networks.config import CausalConfig, DenoiserConfig, TransformerConfig
from sdtt_jax.networks.denoiser import TIME_FEATURES

HUB_PREFIX = "backbone."
NESTED_PREFIX = "backbone.backbone."
PREFIXES = (NESTED_PREFIX, HUB_PREFIX, "")
ANCHOR = "vocab_embed.embedding"
TIME_EMBEDDING = "sigma_map.mlp.0.weight"
ROTARY_FREQUENCY = "rotary_emb.inv_freq"


def read_denoiser(
    tensors: Mapping[str, Any],
    *,
    length: int,
    time_conditioned: bool = False,
    where: str = "the checkpoint",
    place: Callable[[DenoiserConfig, tuple[str, ...], np.ndarray], Any] | None = None,
) -> tuple[DenoiserConfig, dict[str, Any]]:
    """Config and parameters (numpy float32, unboxed) of a published denoiser.

    Args:
      tensors: name to array, in any of the three name layouts.
      length: tokens per sequence; the weights do not tell.
      time_conditioned: whether the network gets sigma; the weights do not tell (published models:
        no).
      where: the file or repository that errors name.
      place: is given the config, each parameter's path and its array as soon as it is read, and
        returns what stands in the tree.

    Raises:
      CheckpointError: naming missing, unexpected or ill-shaped tensors.
    """
    prefix = find_prefix(tensors, ANCHOR, PREFIXES, where)
    cond_dim = _shape(tensors, prefix + TIME_EMBEDDING, where)[0]
    sizes = _sizes(tensors, prefix, where)
    config = _config(
        DenoiserConfig,
        {**sizes, "length": length, "cond_dim": cond_dim, "time_conditioned": time_conditioned},
        where,
    )
    put = functools.partial(place, config) if place is not None else None
    return config, read_params(denoiser_table(config), tensors, prefix, where, put)


def write_denoiser(
    config: DenoiserConfig, params: Mapping[str, Any], prefix: str = HUB_PREFIX
) -> dict[str, np.ndarray]:
    """The reference's tensors for our parameters: `read_denoiser`'s inverse, bit for bit."""
    return write_params(denoiser_table(config), params, prefix)


def read_causal(
    tensors: Mapping[str, Any],
    *,
    length: int,
    where: str = "the checkpoint",
    place: Callable[[CausalConfig, tuple[str, ...], np.ndarray], Any] | None = None,
) -> tuple[CausalConfig, dict[str, Any]]:
    """Config and parameters of the published causal baseline; see `read_denoiser`."""
    prefix = find_prefix(tensors, ANCHOR, PREFIXES, where)
    config = _config(CausalConfig, {**_sizes(tensors, prefix, where), "length": length}, where)
    put = functools.partial(place, config) if place is not None else None
    return config, read_params(causal_table(config), tensors, prefix, where, put)


def write_causal(
    config: TransformerConfig, params: Mapping[str, Any], prefix: str = HUB_PREFIX
) -> dict[str, np.ndarray]:
    """The reference's tensors for our parameters: `read_causal`'s inverse, bit for bit."""
    return write_params(causal_table(config), params, prefix)


def denoiser_table(config: DenoiserConfig) -> Table:
    """Where each tensor of the reference's denoiser goes."""
    d, cond = config.embed_dim, config.cond_dim
    conditioning = [
        *_linear("sigma_map.mlp.0", ("sigma_map", "up"), cond, TIME_FEATURES),
        *_linear("sigma_map.mlp.2", ("sigma_map", "down"), cond, cond),
        *_modulation("blocks.{layer}.adaLN_modulation", ("blocks", "adaln"), 6, d, cond),
        *_modulation("output_layer.adaLN_modulation", ("final", "adaln"), 2, d, cond),
    ]
    final_norm = Entry("output_layer.norm_final.weight", ("final", "norm", "scale"), (d,))
    return _table(config, [*_transformer(config), *conditioning, final_norm])


def causal_table(config: TransformerConfig) -> Table:
    """Where each tensor of the reference's causal baseline goes."""
    final_norm = Entry("output_layer.norm_final.weight", ("final", "scale"), (config.embed_dim,))
    return _table(config, [*_transformer(config), final_norm])


def _table(config: TransformerConfig, entries: list[Entry]) -> Table:
    constants = {ROTARY_FREQUENCY: rotary_frequency(config.head_dim)}
    return Table(entries, config.num_layers, config.padded_vocab, constants)


def rotary_frequency(head_dim: int) -> np.ndarray:
    """`[head_dim / 2]` float32, rounded as the reference's own buffer is."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return np.float32(1.0) / np.power(np.float32(ROTARY_BASE), exponent, dtype=np.float32)


def _transformer(config: TransformerConfig) -> list[Entry]:
    d, rows = config.embed_dim, config.vocab_size + 1
    heads, hidden = (config.num_heads, config.head_dim), config.mlp_ratio * config.embed_dim
    block, ours = "blocks.{layer}", ("blocks",)
    return [
        Entry(ANCHOR, ("embed", "embedding"), (rows, d), vocab_axis=0),
        Entry(f"{block}.norm1.weight", (*ours, "norm1", "scale"), (d,)),
        Entry(f"{block}.norm2.weight", (*ours, "norm2", "scale"), (d,)),
        Entry(
            f"{block}.attn_qkv.weight",
            (*ours, "attn_qkv", "kernel"),
            (3 * d, d),
            transpose=True,
            reshape=(d, 3, *heads),
        ),
        Entry(
            f"{block}.attn_out.weight",
            (*ours, "attn_out", "kernel"),
            (d, d),
            transpose=True,
            reshape=(*heads, d),
        ),
        *_linear(f"{block}.mlp.0", (*ours, "mlp", "up"), hidden, d),
        *_linear(f"{block}.mlp.2", (*ours, "mlp", "down"), d, hidden),
        Entry(
            "output_layer.linear.weight",
            ("head", "linear", "kernel"),
            (rows, d),
            transpose=True,
            vocab_axis=0,
        ),
        Entry("output_layer.linear.bias", ("head", "linear", "bias"), (rows,), vocab_axis=0),
    ]


def _linear(name: str, path: tuple[str, ...], out_dim: int, in_dim: int) -> list[Entry]:
    return [
        Entry(f"{name}.weight", (*path, "kernel"), (out_dim, in_dim), transpose=True),
        Entry(f"{name}.bias", (*path, "bias"), (out_dim,)),
    ]


def _modulation(name: str, path: tuple[str, ...], count: int, d: int, cond: int) -> list[Entry]:
    kernel, bias = (*path, "linear", "kernel"), (*path, "linear", "bias")
    return [
        Entry(
            f"{name}.weight", kernel, (count * d, cond), transpose=True, reshape=(cond, count, d)
        ),
        Entry(f"{name}.bias", bias, (count * d,), reshape=(count, d)),
    ]


def _sizes(tensors: Mapping[str, Any], prefix: str, where: str) -> dict[str, int]:
    rows, d = _shape(tensors, prefix + ANCHOR, where, dims=2)
    hidden = _shape(tensors, prefix + "blocks.0.mlp.0.weight", where)[0]
    half_head = _shape(tensors, prefix + ROTARY_FREQUENCY, where)[0]
    if d % (2 * half_head):
        raise CheckpointError(
            f"{where}: {prefix}{ROTARY_FREQUENCY} implies heads of {2 * half_head} features, which "
            f"do not divide the {d} features of {prefix}{ANCHOR}."
        )
    start = prefix + "blocks."
    layers = {name[len(start) :].split(".")[0] for name in tensors if name.startswith(start)}
    return {
        "vocab_size": rows - 1,
        "embed_dim": d,
        "num_heads": d // (2 * half_head),
        "num_layers": len(layers),
        "mlp_ratio": hidden // d,
    }


def _config(cls: Any, fields: Mapping[str, Any], where: str) -> Any:
    try:
        return cls(**fields)
    except ConfigError as error:
        raise CheckpointError(f"{where}: the tensors' sizes make no network: {error}") from None


def _shape(tensors: Mapping[str, Any], name: str, where: str, dims: int = 0) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"{where}: tensor {name} is missing; the file is incomplete.")
    shape = tuple(tensors[name].shape)
    if not shape or (dims and len(shape) != dims):
        raise CheckpointError(f"{where}: {name} has shape {list(shape)}; the file is damaged.")
    return shape
