"""Writes networks of the Llama family in the hub's layout, with config and tokenizer."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdtt_jax.config import differences, to_mapping
from sdtt_jax.data.tokenizer import HubTokenizer, Special, Tokenizer
from sdtt_jax.data.tokenizer_json import read_tokenizer
from sdtt_jax.errors import CheckpointError, MismatchError
from sdtt_jax.formats import write_json
from sdtt_jax.interchange.claims import attention_claims
from sdtt_jax.interchange.hub import CONFIG_FILE, TENSORS_FILE, TOKENIZER_FILES
from sdtt_jax.interchange.renaming import Layout, Stored, write_params
from sdtt_jax.interchange.safetensors import write_tensors
from sdtt_jax.interchange.scaling import published_scaling
from sdtt_jax.interchange.tables.families import FAMILIES, family_of, signs_of_a_denoiser
from sdtt_jax.interchange.tables.llama import HUB, LLAMA
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.config import LlamaConfig, LlamaDenoiserConfig, TransformerConfig
from sdtt_jax.paths import remove_tree, resolve_links, written_whole
from sdtt_jax.trees import flat_leaves, nested


def export_llama(
    model: Model | CausalModel,
    directory: Path,
    said: Mapping[str, Any],
    carried: Mapping[str, bytes],
) -> list[Path]:
    """Writes `model.safetensors`, `config.json` and, for a published model, its `tokenizer.json`.

    Tokens get their published numbers back. A network whose rotary embedding rotates neighbouring features is
    written as one that rotates halves, with its rows permuted. The config also holds the fields of `said`.
    The files of `carried` are written too.

    Raises:
      MismatchError: the layout has no such network.
    """
    config: Any = model.config
    require_same(to_mapping(config), to_mapping(config) | read_elsewhere(config))
    params: Any = jax.tree.map(np.asarray, model.params)
    if config.rotary_pairs == "neighbours":
        params, config = in_halves(params, config)
    tokenizer = model.tokenizer if isinstance(model.tokenizer, HubTokenizer) else None
    special = None if tokenizer is None else tokenizer.special
    table = dataclasses.replace(LLAMA.table(config), mask_row=mask_row(model))
    tensors, content = write_params(table, params, ""), hub_config(config, special, table.mask_row)
    require_described(config, LLAMA, tensors, "", content, directory)
    return write_repository(directory, tensors, content | dict(said), tokenizer, carried)


def mask_row(model: Model | CausalModel) -> int | None:
    """MASK's row in the tensors that a model goes out as; None where it is the last, or there is none."""
    tokenizer = model.tokenizer
    if isinstance(model.config, LlamaConfig) and isinstance(tokenizer, HubTokenizer):
        return tokenizer.special.mask_row
    found: int | None = model.facts.get("mask_row")
    return found


def read_elsewhere(config: LlamaConfig) -> dict[str, Any]:
    """Fields as the hub's libraries read them: they turn whole heads, and Qwen3's queries have no biases."""
    return {"rotary_share": 1.0, "qkv_bias": config.qkv_bias and not config.qk_norm}


def require_described(
    config: TransformerConfig,
    layout: Layout,
    tensors: Mapping[str, np.ndarray],
    prefix: str,
    content: Mapping[str, Any],
    directory: Path,
) -> None:
    """Raises `MismatchError` unless `content` and tensors, read from `directory`, give back `config`."""
    # The tensors tell the width of an MLP; the others change no result but by rounding.
    free = {"compute_dtype": "", "remat": "", "unroll": 0, "mlp_ratio": 0}
    stored = Stored(content, str(directory / CONFIG_FILE))
    read = layout.config(tensors, prefix, stored, str(directory / TENSORS_FILE))
    require_same(to_mapping(config) | free, to_mapping(read) | free)


def require_same(config: Mapping[str, Any], read: Mapping[str, Any]) -> None:
    """Raises `MismatchError`, which names the fields, if an export's `config` would be `read` as another."""
    lines = differences(config, read)
    if lines:
        raise MismatchError(
            "The format has no field for what this network computes, and would be read as another; export it "
            "as orbax:\n  " + "\n  ".join(lines)
        )


def write_repository(
    directory: Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    carried: Mapping[str, bytes],
) -> list[Path]:
    """Writes the files of a repository of the hub, and returns their paths.

    A tokenizer that came with a published model is written to `tokenizer.json`, and what the hub's libraries
    have to know of it besides to tokenizer_config.json, unless it is among the files of `carried`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = dict(carried)
    if isinstance(tokenizer, HubTokenizer):
        files[TOKENIZER_FILES[0]] = tokenizer.model
        files.setdefault(TOKENIZER_FILES[1], json.dumps(_names(tokenizer), indent=2).encode())
    written = [directory / name for name in (TENSORS_FILE, CONFIG_FILE, *files)]
    # What `written_whole` of a killed export has left is as large as the model.
    for path in written:
        for rest in directory.glob(f".*{path.name}.{'[0-9a-f]' * 8}*"):
            remove_tree(rest) if rest.is_dir() else rest.unlink(missing_ok=True)
    # All get their names together, so that they are never mixed with an older export's. The tensors do last:
    # without them nothing is loaded, and without their config they would be another model.
    with contextlib.ExitStack() as stack:
        tensor_file, config_file, *others = map(stack.enter_context, map(written_whole, written))
        write_json(config_file, config)
        for path, content in zip(others, files.values(), strict=True):
            path.write_bytes(content)
        write_tensors(tensor_file, tensors)
        # A process that is killed between these renames leaves no model, and not the older tensors.
        with contextlib.suppress(OSError):
            resolve_links(written[0]).unlink()
    return written


def _names(tokenizer: HubTokenizer) -> dict[str, str]:
    """A tokenizer_config.json of the tokens that begin and end texts, and of MASK if it is no word."""
    found, special = read_tokenizer(tokenizer.model), tokenizer.special
    named = {"bos": found.id_to_token(special.bos_id), "eos": found.id_to_token(special.eos_id)}
    if special.mask_row in found.get_added_tokens_decoder():
        named["mask"] = found.id_to_token(special.mask_row)
    names = {f"{which}_token": name for which, name in named.items() if name is not None}
    return {"tokenizer_class": "PreTrainedTokenizerFast"} | names


def in_halves(params: Any, config: LlamaConfig) -> tuple[Any, LlamaConfig]:
    """The same network, but rotating features i and i + rotary_dim / 2 where it rotated 2 i and 2 i + 1.

    The parameters are NumPy arrays.
    """
    turned = np.arange(config.rotary_dim)
    order = np.concatenate([turned[::2], turned[1::2], np.arange(len(turned), config.head_dim)])
    leaves = flat_leaves(params)
    for path in leaves:
        if path.split("/")[1] in ("attn_q", "attn_k", "q_norm", "k_norm"):
            leaves[path] = leaves[path][..., order]
    return nested(leaves), dataclasses.replace(config, rotary_pairs="halves")


def completed(
    content: Mapping[str, Any],
    config: LlamaConfig,
    mask_row: int | None,
    layout: Layout,
    tensors: Mapping[str, np.ndarray],
    directory: Path,
) -> dict[str, Any]:
    """The published config, completed so that it alone describes the network.

    It is changed only where the network also follows from the user's `Given` or tokenizer_config.json. The
    network, with this config and MASK at `mask_row`, is written to `directory` as these tensors.
    """
    stored = Stored(content, str(directory / CONFIG_FILE))
    try:
        read = layout.config(tensors, "", stored, stored.where)
        alone = dataclasses.replace(read, compute_dtype=config.compute_dtype)
        if (alone, layout.mask_row(read, stored)) == (config, mask_row):
            return dict(content)
    except CheckpointError:
        pass  # the config is incomplete
    ours, family = hub_config(config, None, mask_row), family_of(content)
    denoises = isinstance(config, LlamaDenoiserConfig)
    said = dict(content) | {"length": config.length}
    if family is None or family.causal == denoises:
        said["model_type"] = ours["model_type"]
        if config.rotary_pairs != FAMILIES[ours["model_type"]].rotary_pairs:
            said["rotary_pairs"] = config.rotary_pairs
    attention = {name: value for name, (value,) in attention_claims(not denoises).items()}
    said |= {name: value for name, value in attention.items() if said.get(name) is not None}
    if not denoises and signs_of_a_denoiser(Stored(said)):
        said["is_causal"] = True
    return said | {name: ours[name] for name in ("mask_token_id", "shift") if denoises}


def hub_config(
    config: LlamaConfig, special: Special | None, mask_row: int | None
) -> dict[str, Any]:
    """The config that `sdtt_jax.load` reads, in the names of the hub's libraries.

    The network must rotate halves. Only this library knows the fields `shift` and `length`. `special` holds
    the published numbers of the special tokens, if they are known, and `mask_row` MASK's where it is not the
    last row.
    """
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    said: dict[str, Any] = {
        "model_type": family,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "hidden_act": "silu",
        "vocab_size": config.columns,
        "tie_word_embeddings": config.tied_head,
        **{theirs: getattr(config, ours) for ours, theirs in HUB.fields.items()},
        **published_scaling(config.rotary_scaling),
    }
    if special is not None:
        said |= {"bos_token_id": special.bos_id, "eos_token_id": special.eos_id}
    if isinstance(config, LlamaDenoiserConfig):
        said |= {
            "model_type": f"a2d-{family}",
            "mask_token_id": config.mask_id if mask_row is None else mask_row,
            "shift": config.shift,
            # A denoiser's texts may be shorter than its positions, and are so unless this says otherwise.
            "length": config.length,
        }
    return said
