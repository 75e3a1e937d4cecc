"""The reference implementation's weights: the denoiser and the causal baseline.

On the model hub the names begin with `backbone.`, in the base models' checkpoints with
`backbone.backbone.`, in bare state dicts with nothing; reading finds out which. All sizes but the
length follow from the tensors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.claims import (
    COUNT,
    FLAG,
    LENGTHS,
    MASKS,
    NUMBER,
    PLAIN_LOGITS,
    ROTATES,
    TANH_GELU,
    Allowed,
    attention_claims,
    check_claims,
    claimed,
)
from sdtt_jax.interchange.renaming import Entry, Layout, Stored, Table, kernel, shape_of
from sdtt_jax.networks import kinds
from sdtt_jax.networks.attention.rotary import ROTARY_BASE
from sdtt_jax.networks.config import CausalConfig, DenoiserConfig, TransformerConfig
from sdtt_jax.networks.denoiser import TIME_FEATURES
from sdtt_jax.networks.layers import NORM_EPSILON

HUB_PREFIX = "backbone."
NESTED_PREFIX = "backbone.backbone."
PREFIXES = (NESTED_PREFIX, HUB_PREFIX, "")
ANCHOR = "vocab_embed.embedding"
TIME_EMBEDDING = "sigma_map.mlp.0.weight"
ROTARY_FREQUENCY = "rotary_emb.inv_freq"
# The sequence length that published models were trained with, unless their config says otherwise.
PUBLISHED_LENGTH = 1024
# Our field -> names that published configs give it, at any depth.
NAMES = {
    "embed_dim": ("hidden_size", "hidden_dim", "d_model", "n_embd", "embed_dim"),
    "num_layers": ("n_blocks", "n_layers", "n_layer", "num_layers", "num_hidden_layers"),
    "num_heads": ("n_heads", "n_head", "num_heads", "num_attention_heads"),
    "mlp_ratio": ("mlp_ratio",),
    "cond_dim": ("cond_dim",),
    "length": LENGTHS,
    "time_conditioned": ("time_conditioning",),
}
# Values that other fields of these configs may have (null counts as absent); see `check_claims`.
CLAIMS: Allowed = {
    "graph": (),  # SEDD's
    "quantization_config": (),
    "cross_attn": (False,),
    "tie_word_embeddings": (False,),
    **dict.fromkeys(("activation", "activation_function", "hidden_act"), TANH_GELU),
    **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon", "norm_eps"), (NORM_EPSILON,)),
    **dict.fromkeys(("rope_theta", "rotary_base"), (ROTARY_BASE,)),
    **dict.fromkeys(("norm_type", "layer_norm_type"), ("layernorm", "layer_norm")),
    **dict.fromkeys(("qk_norm", "use_qk_norm"), (False,)),
    "rope_scaling": (),
    **PLAIN_LOGITS,
    **ROTATES,
}
# XDLM's names for the share of its noise that is other tokens and not MASK.
UNIFORM_SHARE = ("k1", "k_uniform")
# What these configs call noise that masks. A config says it of its process, but a schedule of its noise.
MASKING = ("absorbing_state", "absorbing", "absorb", "masked", "masking", "mask", "mdlm")
LOG_LINEAR = ("loglinear", "log-linear", "log_linear")
# Losses of networks that predict the masked tokens themselves, and by which students learn from them.
LOSSES = (
    "mdlm",
    "subs",
    "elbo",
    "nelbo",
    "low_var",
    "ce",
    "cross_entropy",
    "nll",
    "mse",
    "tvd",
    "kld",
    "kl-fwd",
    "kl-bwd",
)
# IDLM's students have their teacher's noise; if that is DUO's, which is uniform, another field says so.
DENOISER_CLAIMS: Allowed = {
    "model_type": ("mdlm", "sdtt", "idlm", "xdlm"),
    "architectures": ("mdlm", "sdtt", "multiroundsdtt", "idlm", "xdlm"),
    "algo": ("mdlm", "sdtt", "idlm", "xdlm"),
    "parameterization": ("subs", "mdlm", "sdtt", "multi-round-sdtt", "idlm", "align"),
    "var_min": (),  # DUO's
    "_class_name": ("mdlm", "sdtt", "multiroundsdtt", "idlm", "xdlm", "dit", "ddit"),
    **dict.fromkeys(("diffusion", "diffusion_process", "forward_process", "forward"), MASKING),
    "noise_type": (*MASKING, *LOG_LINEAR),
    "p_uniform": (0,),  # GIDD's share of other tokens
    "loss_type": LOSSES,
    "backbone": ("dit", "ddit", "ddit-orig", "hf_dit"),
    "adaLN": (True,),
    "is_decoder": (False,),
    **attention_claims(causal=False),
}
CAUSAL_CLAIMS: Allowed = {
    **dict.fromkeys(("model_type", "architectures", "algo", "parameterization"), ("ar",)),
    "backbone": ("ar", "dit", "ddit"),
    "adaLN": (False,),
    "is_decoder": (True,),
    **attention_claims(causal=True),
}


def denoiser_table(config: DenoiserConfig) -> Table:
    """Where each tensor of the reference's denoiser goes."""
    d, cond = config.embed_dim, config.cond_dim
    conditioning = [
        *_linear("sigma_map.mlp.0", "sigma_map/up", cond, TIME_FEATURES),
        *_linear("sigma_map.mlp.2", "sigma_map/down", cond, cond),
        *_modulation("blocks.{layer}.adaLN_modulation", "blocks/adaln", 6, d, cond),
        *_modulation("output_layer.adaLN_modulation", "final/adaln", 2, d, cond),
    ]
    final_norm = Entry("output_layer.norm_final.weight", "final/norm/scale", (d,))
    return _table(config, [*_transformer(config), *conditioning, final_norm])


def causal_table(config: TransformerConfig) -> Table:
    """Where each tensor of the reference's causal baseline goes."""
    final_norm = Entry("output_layer.norm_final.weight", "final/scale", (config.embed_dim,))
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
    block = "blocks.{layer}"
    return [
        Entry(ANCHOR, "embed/embedding", (rows, d), vocab_axis=0),
        Entry(f"{block}.norm1.weight", "blocks/norm1/scale", (d,)),
        Entry(f"{block}.norm2.weight", "blocks/norm2/scale", (d,)),
        kernel(f"{block}.attn_qkv", "blocks/attn_qkv", 3 * d, d, reshape=(d, 3, *heads)),
        kernel(f"{block}.attn_out", "blocks/attn_out", d, d, reshape=(*heads, d)),
        *_linear(f"{block}.mlp.0", "blocks/mlp/up", hidden, d),
        *_linear(f"{block}.mlp.2", "blocks/mlp/down", d, hidden),
        kernel("output_layer.linear", "head/linear", rows, d, vocab_axis=0),
        Entry("output_layer.linear.bias", "head/linear/bias", (rows,), vocab_axis=0),
    ]


def _linear(name: str, path: str, out_dim: int, in_dim: int) -> list[Entry]:
    return [
        kernel(name, path, out_dim, in_dim),
        Entry(f"{name}.bias", f"{path}/bias", (out_dim,)),
    ]


def _modulation(name: str, path: str, count: int, d: int, cond: int) -> list[Entry]:
    return [
        kernel(name, f"{path}/linear", count * d, cond, reshape=(cond, count, d)),
        Entry(f"{name}.bias", f"{path}/linear/bias", (count * d,), reshape=(count, d)),
    ]


def _denoiser_config(
    tensors: Mapping[str, Any], prefix: str, stored: Stored, file: str
) -> DenoiserConfig:
    sizes = _sizes(tensors, prefix, file)
    sizes["cond_dim"] = shape_of(tensors, prefix + TIME_EMBEDDING, file)[0]
    # Published models do not say it, and do not see sigma.
    sizes["time_conditioned"] = claimed(stored, NAMES["time_conditioned"], FLAG, default=False)
    share = uniform_share(stored)
    if not 0 <= share < 1:
        raise CheckpointError(
            f"{stored.where} says that a share {share} of its noise is other tokens, not MASK; it must be "
            "below 1, because only masked tokens are predicted here."
        )
    return _config(DenoiserConfig, sizes, stored, file, "a masked denoiser", DENOISER_CLAIMS)


def uniform_share(stored: Stored) -> float:
    """The share of a denoiser's noise in training that was other tokens and not MASK (XDLM's)."""
    return float(claimed(stored, UNIFORM_SHARE, NUMBER, None) or 0)


def _causal_config(
    tensors: Mapping[str, Any], prefix: str, stored: Stored, file: str
) -> CausalConfig:
    sizes = _sizes(tensors, prefix, file)
    return _config(CausalConfig, sizes, stored, file, "a causal transformer", CAUSAL_CLAIMS)


def _config(
    cls: Any, sizes: dict[str, Any], stored: Stored, file: str, what: str, kind: Allowed
) -> Any:
    length = claimed(stored, NAMES["length"], COUNT, PUBLISHED_LENGTH)
    sizes = sizes | {"length": length}
    rows, width = sizes["vocab_size"], sizes["mlp_ratio"] * sizes["embed_dim"]
    ours: dict[str, tuple[Any, ...]] = {
        name: (sizes[field],) for field, names in NAMES.items() if field in sizes for name in names
    }
    # Configs may or may not count MASK.
    ours |= dict.fromkeys(("vocab_size", "tokens"), (rows, rows + 1))
    ours |= dict.fromkeys(MASKS, (rows,))
    ours |= {"block_size": (length,)} | dict.fromkeys(("intermediate_size", "n_inner"), (width,))
    check_claims(stored, what, file, {**CLAIMS, **kind, **ours})
    try:
        return cls(**sizes)
    except ConfigError as error:
        raise CheckpointError(f"{file}: the tensors' sizes fit no network: {error}") from None


def _sizes(tensors: Mapping[str, Any], prefix: str, where: str) -> dict[str, Any]:
    rows, d = shape_of(tensors, prefix + ANCHOR, where, dims=2)
    hidden = shape_of(tensors, prefix + "blocks.0.mlp.0.weight", where)[0]
    half_head = shape_of(tensors, prefix + ROTARY_FREQUENCY, where)[0]
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


DENOISER = Layout(
    name=kinds.DENOISER,
    anchor=TIME_EMBEDDING,
    prefixes=PREFIXES,
    config=_denoiser_config,
    table=denoiser_table,
)
CAUSAL = Layout(
    name=kinds.CAUSAL,
    anchor=ANCHOR,
    prefixes=PREFIXES,
    config=_causal_config,
    table=causal_table,
)
