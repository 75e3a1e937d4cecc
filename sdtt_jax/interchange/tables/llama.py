"""The Llama family: causal models and denoisers, by the hub's names, by OLMo's (LLaDA) and in GGUF files.

A checkpoint's name decides nothing. The network has biases and norms of queries and keys if their tensors are
there. Its head is untied if the config says so, or says nothing and the head's tensor is there. Whether it is
a denoiser, which token is MASK, and whether it predicts the next token come from the user, else from its
config, else from the family that the config names; if none of them does, an error asks the user.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdtt_jax.data.making import NAMES_FILE, special_names
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.formats import read_json
from sdtt_jax.interchange.claims import (
    COUNT,
    FLAG,
    MASKS,
    NUMBER,
    PLAIN_LOGITS,
    ROTATES,
    TOKEN,
    Allowed,
    ValueKind,
    attention_claims,
    check_claims,
    claimed,
)
from sdtt_jax.interchange.hub import TOKENIZER_FILES
from sdtt_jax.interchange.relatives import RELATIVES
from sdtt_jax.interchange.renaming import LAYER, Entry, Layout, Stored, Table, kernel, shape_of
from sdtt_jax.interchange.safetensors import require_content
from sdtt_jax.interchange.scaling import (
    GGUF_DIVISORS,
    UNSCALED,
    gguf_divisors_scaling,
    gguf_scaling,
    hub_scaling,
)
from sdtt_jax.interchange.tables.families import FAMILIES, Family, family_of, is_causal, shift_of
from sdtt_jax.networks.config import ROTARY_PAIRS, LlamaConfig, LlamaDenoiserConfig
from sdtt_jax.paths import as_path

# Exports say it, where the family does not.
PAIRS = ValueKind(lambda value: value in ROTARY_PAIRS, f"one of {', '.join(ROTARY_PAIRS)}")
# The longest sequences of a denoiser, unless the user gives a length.
LONGEST_DENOISED = 1024


class Names(NamedTuple):
    """One layout's names."""

    tensors: Mapping[str, str]  # by our paths, without ".weight"
    fields: Mapping[str, str]  # of the config, by our names


# The hub's, OLMo's and GGUF files' name for each; names within a block follow the layout's `_BLOCKS`.
_TENSORS = {
    "embed": ("model.embed_tokens", "model.transformer.wte", "token_embd"),
    "final": ("model.norm", "model.transformer.ln_f", "output_norm"),
    "head": ("lm_head", "model.transformer.ff_out", "output"),
    "blocks/norm1": ("input_layernorm", "attn_norm", "attn_norm"),
    "blocks/attn_q": ("self_attn.q_proj", "q_proj", "attn_q"),
    "blocks/attn_k": ("self_attn.k_proj", "k_proj", "attn_k"),
    "blocks/attn_v": ("self_attn.v_proj", "v_proj", "attn_v"),
    "blocks/attn_out": ("self_attn.o_proj", "attn_out", "attn_output"),
    "blocks/norm2": ("post_attention_layernorm", "ff_norm", "ffn_norm"),
    "blocks/mlp/gate": ("mlp.gate_proj", "ff_proj", "ffn_gate"),
    "blocks/mlp/up": ("mlp.up_proj", "up_proj", "ffn_up"),
    "blocks/mlp/down": ("mlp.down_proj", "ff_out", "ffn_down"),
    "blocks/q_norm": ("self_attn.q_norm", "q_norm", "attn_q_norm"),
    "blocks/k_norm": ("self_attn.k_norm", "k_norm", "attn_k_norm"),
}
_BLOCKS = ("model.layers.{layer}.", "model.transformer.blocks.{layer}.", "blk.{layer}.")
_FIELDS = {
    "num_layers": ("num_hidden_layers", "n_layers", "block_count"),
    "num_heads": ("num_attention_heads", "n_heads", "head_count"),
    "num_kv_heads": ("num_key_value_heads", "n_kv_heads", "head_count_kv"),
    "head_dim": ("head_dim", None, "key_length"),
    "norm_epsilon": ("rms_norm_eps", "rms_norm_eps", "layer_norm_rms_epsilon"),
    "rotary_base": ("rope_theta", "rope_theta", "freq_base"),
    "rotary_share": ("partial_rotary_factor", None, None),
    "length": ("max_position_embeddings", "max_sequence_length", "context_length"),
}


# What other libraries call a field, where it is not there under the hub's name.
OTHER_FIELDS = {
    "norm_epsilon": ("norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    "rotary_base": ("rotary_base", "rope_base", "rotary_emb_base"),
}
# Names of the length of blocks that confine attention: of any network, and then of block-causal denoisers. A
# causal model's `block_size` is the length of its texts.
BLOCKS = ("attention_chunk_size", "block_size", "block_length", "bd_size")
# The hub's, OLMo's and GGUF files' names for sizes that the tensors tell.
WIDTHS = ("hidden_size", "d_model", "embedding_length")
MLP_WIDTHS = ("intermediate_size", "mlp_hidden_size", "feed_forward_length")


def _names(column: int) -> Names:
    tensors = {
        path: _BLOCKS[column] * path.startswith("blocks/") + names[column]
        for path, names in _TENSORS.items()
    }
    fields = {ours: name for ours, names in _FIELDS.items() if (name := names[column])}
    return Names(tensors, fields)


HUB, OLMO, GGUF = map(_names, range(3))

WHAT = "a network of the Llama family"
# What the config may say besides sizes (null counts as absent; see `check_claims`). The tensors of many
# relatives have the same names; only these fields tell that they compute something else.
CLAIMS: Allowed = {
    # Two names of one function.
    **dict.fromkeys(("hidden_act", "activation_type"), ("silu", "swish")),
    **dict.fromkeys(("hidden_activation", "activation_function"), ("silu", "swish")),
    **dict.fromkeys(("mlp_bias", "include_bias", "use_sliding_window"), (False,)),
    **dict.fromkeys(("scale_logits", "input_emb_norm"), (False,)),
    "clip_qkv": (),
    # Factors of Granite, MiniCPM and Gemma; in SmolLM3 and Llama 4, the layers that rotate.
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), (1,)),
    **dict.fromkeys(("scale_emb", "embed_scale", "lm_head_multiplier", "rope_ratio"), (1,)),
    "no_rope_layers": (1,),
    **dict.fromkeys(("attn_temperature_tuning", "layer_sharing", "norm_after"), (False,)),
    **dict.fromkeys(("scale_depth", "dim_model_base", "query_pre_attn_scalar"), ()),
    **PLAIN_LOGITS,
    **ROTATES,
    **dict.fromkeys(("alibi", "attention_layer_norm", "multi_query_attention"), (False,)),
    **dict.fromkeys(("layer_norm_type", "norm_type"), ("rms", "rmsnorm", "rms_norm")),
    # Attention in parallel with the MLP, neighbours rotated together, Qwen's positions in images.
    **dict.fromkeys(("parallel_attn", "parallel_residual", "use_parallel_residual"), (False,)),
    **dict.fromkeys(("rope_interleave", "rope_interleaved", "rope_traditional"), (False,)),
    "use_mrope": (False,),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0, 1)),
    "expert_count": (0,),  # of a GGUF file; some converters write it for models without experts too
    "block_type": ("llama",),
    "layer_types": ("full_attention",),
    "quantization_config": (),
}


def llama_table(names: Names, config: LlamaConfig) -> Table:
    """Where each tensor of a layout goes, by its names."""
    d, mlp, rows = config.embed_dim, config.mlp_dim, config.columns
    heads, kv_heads = (config.num_heads, config.head_dim), (config.kv_heads, config.head_dim)

    def scale(path: str, size: int) -> Entry:
        return Entry(f"{names.tensors[path]}.weight", f"{path}/scale", (size,))

    def linear(path: str, out_dim: int, in_dim: int, **how: Any) -> Entry:
        return kernel(names.tensors[path], path, out_dim, in_dim, **how)

    embed, head = (f"{names.tensors[path]}.weight" for path in ("embed", "head"))
    entries = [
        Entry(embed, "embed/embedding", (rows, d), vocab_axis=0),
        scale("final", d),
        scale("blocks/norm1", d),
        scale("blocks/norm2", d),
    ]
    for letter, shape in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        size, path = shape[0] * shape[1], f"blocks/attn_{letter}"
        entries.append(linear(path, size, d, reshape=(d, *shape)))
        if config.qkv_bias:
            bias = f"{names.tensors[path]}.bias"
            entries.append(Entry(bias, f"{path}/bias", (size,), reshape=shape))
    entries += [
        linear("blocks/attn_out", d, heads[0] * heads[1], reshape=(*heads, d)),
        linear("blocks/mlp/gate", mlp, d),
        linear("blocks/mlp/up", mlp, d),
        linear("blocks/mlp/down", d, mlp),
    ]
    if config.qk_norm:
        entries += [scale(f"blocks/{letter}_norm", config.head_dim) for letter in "qk"]
    tied = {head: embed} if config.tied_head else {}
    if not config.tied_head:
        entries.append(kernel(names.tensors["head"], "head/linear", rows, d, vocab_axis=0))
    # Older exports carry their rotary frequencies along; a GGUF file's are in our config already.
    ignored = [f"{names.tensors['blocks/attn_q'].rsplit('.', 1)[0]}.rotary_emb.inv_freq"]
    if names is GGUF:
        ignored.append(GGUF_DIVISORS)
    return Table(entries, config.num_layers, config.padded_vocab, ignored=ignored, tied=tied)


def _config(
    names: Names, tensors: Mapping[str, Any], prefix: str, stored: Stored, file: str
) -> LlamaConfig:
    """Our config, from the published config and the tensors' shapes."""
    if not stored.content:
        raise CheckpointError(
            f"{file} holds a network of the Llama family; its number of heads is in its config.json: put "
            "that beside the file."
        )
    # Checked before the tensors, which other networks (quantised, other activations) may name otherwise.
    check_claims(stored, WHAT, file, CLAIMS)
    _require_known(names, stored)
    first = {path: f"{prefix}{name}".replace(LAYER, "0") for path, name in names.tensors.items()}
    rows, embed = shape_of(tensors, f"{first['embed']}.weight", file, dims=2)
    mlp, _ = shape_of(tensors, f"{first['blocks/mlp/gate']}.weight", file, dims=2)
    sizes: dict[str, Any] = {"vocab_size": rows, "embed_dim": embed, "mlp_dim": mlp}
    if names is HUB:
        usual = _family(names, stored) or FAMILIES["llama"]
        sizes |= {"norm_epsilon": usual.norm_epsilon, "rotary_base": usual.rotary_base}
    for field, theirs in names.fields.items():
        value = claimed(stored, (theirs,), NUMBER, None)
        if value is None:
            value = claimed(stored, OTHER_FIELDS.get(field, ()), NUMBER, None)
        if value is not None:
            sizes[field] = value
    for field in ("num_layers", "num_heads", "length"):
        if field not in sizes:
            raise CheckpointError(
                f"{stored.where}: field {names.fields[field]!r} is missing; this is not the config of a "
                "network of the Llama family."
            )
    sizes["qkv_bias"] = f"{first['blocks/attn_q']}.bias" in tensors
    sizes["qk_norm"] = f"{first['blocks/q_norm']}.weight" in tensors
    no_head = f"{first['head']}.weight" not in tensors
    sizes["tied_head"] = claimed(stored, ("tie_word_embeddings", "weight_tying"), FLAG, no_head)
    scaling = (gguf_scaling if names is GGUF else hub_scaling)(stored)
    sizes["rotary_scaling"] = scaling
    allowed: dict[str, tuple[Any, ...]] = {"rope_type": (*UNSCALED, scaling.kind)}
    allowed |= dict.fromkeys(("vocab_size", "embedding_size"), (rows,))
    allowed |= dict.fromkeys(WIDTHS, (embed,)) | dict.fromkeys(MLP_WIDTHS, (mlp,))
    interval = claimed(stored, ("no_rope_layer_interval",), NUMBER, None)
    if (
        stored.content.get("no_rope_layers") is None
        and (interval or math.inf) <= sizes["num_layers"]
    ):
        allowed["no_rope_layer_interval"] = ()  # SmolLM3: every so many layers, one does not rotate
    if names is OLMO:
        del allowed["vocab_size"]  # OLMo's is the tokenizer's size
    try:
        config = _of_kind(names, sizes, stored)
        if names is GGUF and GGUF_DIVISORS in tensors:
            scaling = gguf_divisors_scaling(tensors[GGUF_DIVISORS], config, stored)
            config = dataclasses.replace(config, rotary_scaling=scaling)
    except ConfigError as error:
        raise CheckpointError(f"{stored.where}: {error}") from None
    allowed["dimension_count"] = (config.head_dim,)
    scales = ("attention_multiplier", "attention_scale", "softmax_scale")
    allowed |= dict.fromkeys(scales, (config.head_dim**-0.5,))
    allowed |= {"rotary_pct": (config.rotary_share,), "rotary_dim": (config.rotary_dim,)}
    check_claims(stored, WHAT, file, allowed)
    if stored.given.causal is None:
        causal = not isinstance(config, LlamaDenoiserConfig)
        kind = f"a {'causal model' if causal else 'denoiser'} since causal is not given"
        check_claims(stored, kind, file, attention_claims(causal))
    _require_no_window(names, config, stored)
    return config


def _require_known(names: Names, stored: Stored) -> None:
    """Raises `CheckpointError` for another architecture, unless the user says what it is."""
    given = stored.given
    if _family(names, stored) is None and given.causal is None and given.mask_id is None:
        known = ", ".join((*FAMILIES, *RELATIVES))
        raise CheckpointError(
            f"{stored.where} says model_type={stored.content.get('model_type')!r}, which is not known (known "
            f"are {known}): if its code computes what Llama's does (rotations of halves, attention without "
            "blocks or windows), pass causal=True for a causal model, or causal=False with mask_id and shift "
            "for a denoiser."
        )


def _require_no_window(names: Names, config: LlamaConfig, stored: Stored) -> None:
    """Raises `CheckpointError` where a token would not see all others, as in Mistral's long texts.

    A window counts for nothing in families that have none, and with use_sliding_window=False.
    Block-causal denoisers see none of the blocks after their own.
    """
    for name in BLOCKS if isinstance(config, LlamaDenoiserConfig) else BLOCKS[:1]:
        block = claimed(stored, (name,), NUMBER, None)
        if block is not None and block < config.length:
            raise CheckpointError(
                f"{stored.where} says {name}={block!r}: a token sees no block of {block} after its own, or "
                "none but its own; this library's networks have no such blocks."
            )
    family = _family(names, stored)
    unused = stored.content.get("use_sliding_window") is False
    if unused or (family is not None and family.window is None):
        return
    usual = None if family is None or "sliding_window" in stored.content else family.window
    window = claimed(stored, ("sliding_window",), NUMBER, usual)
    if window is not None and window < config.length:
        raise CheckpointError(
            f"{stored.where} says sliding_window={window!r}, which is shorter than its texts of "
            f"{config.length} tokens, and this library's networks have no window: pass a length that fits "
            "into it."
        )


def _of_kind(names: Names, sizes: dict[str, Any], stored: Stored) -> LlamaConfig:
    """A causal network or a denoiser, according to user, config and family."""
    given, family = stored.given, _family(names, stored)
    # Exports say it, since the hub's fields only say how long texts may be.
    length = given.length or claimed(stored, ("length",), COUNT, None)
    if length is not None:
        sizes["length"] = length
    # llama.cpp's converters reorder the features of queries and keys, whatever the network is read as.
    pairs = "neighbours" if names is GGUF else family.rotary_pairs if family else "halves"
    sizes["rotary_pairs"] = claimed(stored, ("rotary_pairs",), PAIRS, pairs)
    if is_causal(family, stored):
        denoisers = [name for name in given.given_names if name in ("mask_id", "shift")]
        if denoisers:
            raise CheckpointError(
                f"{stored.where}: only a denoiser has {' and '.join(denoisers)}, but this is read as a "
                f"causal model; pass causal=False too, or leave out {' and '.join(denoisers)}."
            )
        return LlamaConfig(**sizes)
    if length is None:
        sizes["length"] = min(sizes["length"], LONGEST_DENOISED)
    shift = shift_of(family, stored)
    rows = sizes["vocab_size"]
    config = LlamaDenoiserConfig(**sizes | {"vocab_size": rows - 1}, shift=shift)
    _mask_row(names, config, stored)
    return config


def _mask_row(names: Names, config: LlamaConfig, stored: Stored) -> int | None:
    """MASK in the published numbering; None for a causal model."""
    if not isinstance(config, LlamaDenoiserConfig):
        return None
    family, said = _family(names, stored), claimed(stored, MASKS, TOKEN, None)
    mask, usual = stored.given.mask_id, family and family.mask_id
    mask = said if mask is None else mask
    # What the model's own tokenizer says counts more than what is usual in its family.
    mask = _mask_by_name(stored, usual) if mask is None else mask
    if mask is None:
        raise CheckpointError(
            f"{stored.where} does not say which token is MASK (mask_token_id), nor does {NAMES_FILE} beside "
            "it (mask_token): pass mask_id=…."
        )
    if not 0 <= mask < config.columns:
        raise CheckpointError(
            f"{stored.where}: MASK is token {mask}, but the embedding has only {config.columns} rows; pass "
            "another mask_id."
        )
    return int(mask)


def _mask_by_name(stored: Stored, usual: int | None) -> int | None:
    """MASK as the tokenizer's own config names it, like that of dLLM's models (a2d).

    `usual` is the family's, which is taken if the tokenizer's config names none, or none with a number.
    """
    beside = as_path(stored.where).with_name(NAMES_FILE)
    require_content(beside)
    named = special_names(beside, CheckpointError)
    name, added = named.token("mask"), named.content.get("added_tokens_decoder") or {}
    if name is None:
        return usual
    tokens = beside.with_name(TOKENIZER_FILES[0])
    try:
        numbers = {entry["content"]: int(number) for number, entry in added.items()}
        # transformers 5 writes no added_tokens_decoder.
        if name not in numbers and tokens.is_file():
            require_content(tokens)
            listed = read_json(tokens, CheckpointError)["added_tokens"]
            numbers |= {entry["content"]: int(entry["id"]) for entry in listed}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{beside}: added_tokens_decoder does not map numbers to tokens, or {tokens.name} has no list "
            "added_tokens; download both again, or pass mask_id=…."
        ) from None
    if name not in numbers and usual is None:
        raise CheckpointError(
            f"{beside} calls MASK {name!r}, which is not among the {len(numbers)} tokens that it and "
            f"{tokens.name} add: pass mask_id=…."
        )
    return numbers.get(name, usual)


def _family(names: Names, stored: Stored) -> Family | None:
    return FAMILIES["llama"] if names is GGUF else family_of(stored.content)


def _layout(name: str, names: Names) -> Layout:
    return Layout(
        name=name,
        anchor=f"{names.tensors['embed']}.weight",
        prefixes=("",),
        config=lambda *found: _config(names, *found),
        table=lambda config: llama_table(names, config),
        mask_row=lambda config, stored: _mask_row(names, config, stored),
    )


LLAMA = _layout("llama", HUB)
LLADA = _layout("llada", OLMO)
LLAMA_GGUF = _layout("gguf", GGUF)
