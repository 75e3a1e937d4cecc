"""GPT-2 in the model hub's own layout, and DiffuGPT: `config.json` and `model.safetensors`.

Its Conv1D weights are `[in, out]`, like ours; the head is the token embedding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.claims import (
    PLAIN_LOGITS,
    TANH_GELU,
    Allowed,
    attention_claims,
    check_claims,
)
from sdtt_jax.interchange.renaming import Entry, Layout, Stored, Table, shape_of
from sdtt_jax.networks import kinds
from sdtt_jax.networks.config import GPT2Config, GPT2DenoiserConfig

ANCHOR = "wte.weight"
# DiffuGPT's names: a denoiser's module holds the transformer and, separately, the token embedding.
EMBED, DENOISES = "embed_tokens.weight", "denoise_model."
# Causal masks that older exports carry along; they are not parameters.
BUFFERS = ("h.{layer}.attn.bias", "h.{layer}.attn.masked_bias")
# Our field -> the hub's; these must be there.
FIELDS = {
    "vocab_size": "vocab_size",
    "length": "n_positions",
    "num_layers": "n_layer",
    "embed_dim": "n_embd",
    "num_heads": "n_head",
}
# Values that fields besides the sizes may have (null counts as absent); see `check_claims`.
CLAIMS: Allowed = {
    "model_type": ("gpt2",),
    "architectures": ("gpt2lmheadmodel", "gpt2model", "gpt2doubleheadsmodel"),
    "activation_function": TANH_GELU,
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "quantization_config": (),
    **PLAIN_LOGITS,
}


def _denoiser(
    tensors: Mapping[str, Any], prefix: str, stored: Stored, file: str
) -> GPT2DenoiserConfig:
    """The config of a DiffuGPT: MASK is the last row of its embedding."""
    config = _config(tensors, prefix, stored, file, causal=False)
    rows, _ = shape_of(tensors, EMBED, file, dims=2)
    if config.vocab_size not in (rows - 1, rows):
        raise CheckpointError(
            f"{stored.where} says vocab_size={config.vocab_size}, but {EMBED} of {file} has {rows} rows, of "
            "which the last is MASK."
        )
    fields = dataclasses.asdict(config) | {"vocab_size": rows - 1}
    return GPT2DenoiserConfig(**fields)


def _config(
    _tensors: Mapping[str, Any], _prefix: str, stored: Stored, file: str, causal: bool = True
) -> GPT2Config:
    """Our config from the hub's, which states all sizes."""
    mapping, where = stored.content, stored.where
    if not mapping:
        raise CheckpointError(
            f"{file} holds a GPT-2; its sizes are in its config.json: put that file beside it."
        )
    what = "GPT-2" if causal else "DiffuGPT"
    check_claims(stored, what, file, {**CLAIMS, **attention_claims(causal)})
    try:
        embed = mapping["n_embd"]
        hidden = mapping.get("n_inner") or 4 * embed
        if embed < 1 or hidden % embed:
            raise CheckpointError(
                f"{where}: n_inner={hidden} must be a multiple of n_embd={embed}, a positive number."
            )
        return GPT2Config(
            **{ours: mapping[theirs] for ours, theirs in FIELDS.items()},
            mlp_ratio=hidden // embed,
            norm_epsilon=mapping.get("layer_norm_epsilon", 1e-5),
        )
    except KeyError as error:
        raise CheckpointError(
            f"{where}: field {error} is missing; this is not a GPT-2 config."
        ) from None
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from None
    except TypeError as error:
        raise CheckpointError(f"{where}: one of GPT-2's sizes is not a number ({error}).") from None


def hub_config(config: GPT2Config, bos_id: int | None) -> dict[str, Any]:
    """The config that `sdtt_jax.load` reads, in the names of the hub's libraries; the inverse of `_config`.

    `bos_id` is the tokenizer's, if known; it also ends a text.
    """
    said = {
        "model_type": "gpt2",
        "activation_function": TANH_GELU[0],
        "n_inner": config.mlp_ratio * config.embed_dim,
        "layer_norm_epsilon": config.norm_epsilon,
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }
    return said | ({} if bos_id is None else {"bos_token_id": bos_id, "eos_token_id": bos_id})


def gpt2_table(config: GPT2Config, embed: str = ANCHOR, start: str = "") -> Table:
    """Where each tensor of the hub's GPT-2 goes.

    `embed` is the name of the token embedding, `start` what all other names begin with.
    """
    d, hidden = config.embed_dim, config.mlp_ratio * config.embed_dim
    heads = (config.num_heads, config.head_dim)
    block = f"{start}h.{{layer}}"
    entries = [
        Entry(embed, "embed/embedding", (config.columns, d), vocab_axis=0),
        Entry(f"{start}wpe.weight", "positions/embedding", (config.length, d)),
        *_norm(f"{block}.ln_1", "blocks/norm1", d),
        *_norm(f"{block}.ln_2", "blocks/norm2", d),
        *_norm(f"{start}ln_f", "final", d),
        *_conv(f"{block}.attn.c_attn", "blocks/attn_qkv", (d,), (3, *heads)),
        *_conv(f"{block}.attn.c_proj", "blocks/attn_out", heads, (d,)),
        *_conv(f"{block}.mlp.c_fc", "blocks/mlp/up", (d,), (hidden,)),
        *_conv(f"{block}.mlp.c_proj", "blocks/mlp/down", (hidden,), (d,)),
    ]
    tied, buffers = {"lm_head.weight": embed}, [f"{start}{name}" for name in BUFFERS]
    return Table(entries, config.num_layers, config.padded_vocab, ignored=buffers, tied=tied)


def _norm(name: str, path: str, d: int) -> list[Entry]:
    return [
        Entry(f"{name}.weight", f"{path}/scale", (d,)),
        Entry(f"{name}.bias", f"{path}/bias", (d,)),
    ]


def _conv(
    name: str, path: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> list[Entry]:
    flat_in, flat_out = int(np.prod(in_shape)), int(np.prod(out_shape))
    kernel, bias = f"{path}/kernel", f"{path}/bias"
    return [
        Entry(f"{name}.weight", kernel, (flat_in, flat_out), reshape=(*in_shape, *out_shape)),
        Entry(f"{name}.bias", bias, (flat_out,), reshape=out_shape),
    ]


GPT2 = Layout(
    name=kinds.GPT2,
    anchor=ANCHOR,
    prefixes=("transformer.", ""),
    config=_config,
    table=gpt2_table,
)
DIFFUGPT = Layout(
    name="diffugpt",
    anchor=f"{DENOISES}wpe.weight",
    prefixes=("",),
    config=_denoiser,
    table=lambda config: gpt2_table(config, EMBED, DENOISES),
    mask_row=lambda config, _stored: config.mask_id,
)
