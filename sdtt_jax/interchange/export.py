"""Writes models: in the layout that they came in or the reference's, or as parameters for `sdtt_jax.load`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdtt_jax.checkpoints.store import save_params
from sdtt_jax.config import require, to_mapping
from sdtt_jax.data.tokenizer import save_tokenizer
from sdtt_jax.errors import MismatchError
from sdtt_jax.interchange.claims import TEXTS
from sdtt_jax.interchange.found import FINAL, finished
from sdtt_jax.interchange.hub import carried
from sdtt_jax.interchange.layouts import LAYOUTS, is_published
from sdtt_jax.interchange.llama_export import (
    completed,
    export_llama,
    require_described,
    write_repository,
)
from sdtt_jax.interchange.renaming import Table, write_params
from sdtt_jax.interchange.safetensors import FLOATS
from sdtt_jax.interchange.tables.gpt2 import DIFFUGPT, hub_config
from sdtt_jax.interchange.tables.llama import LLAMA_GGUF
from sdtt_jax.interchange.tables.reference import HUB_PREFIX
from sdtt_jax.interchange.tokenizers import facts_of, unsaid_ends
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.config import GPT2Config, LlamaConfig
from sdtt_jax.networks.kinds import GPT2_DENOISER
from sdtt_jax.paths import PathLike, as_path, is_remote


def export_reference(model: Model | CausalModel, directory: PathLike) -> list[Path]:
    """Writes `model.safetensors` and `config.json` as the reference's own loader reads them.

    A model that was read from a published layout is written with the same tensors, each with its dtype and
    bits (but without buffers that hold no parameters, such as causal masks), and with its own config if it
    had one, completed with what `load` was given or read from other files; so are the files beside it that
    other libraries read (`hub.CARRIED`). Other models of the Llama family are written in the hub's layout.

    Raises:
      MismatchError: the reference has no such network, or its config no field for what it computes.
    """
    directory, facts = as_path(directory), model.facts
    layout = facts.get("layout", facts["kind"])
    layout = DIFFUGPT.name if layout == GPT2_DENOISER else layout
    beside = carried(facts["beside"]) if "beside" in facts else {}
    if isinstance(model.config, LlamaConfig) and facts.get("layout") in (None, LLAMA_GGUF.name):
        # A GGUF file's model was trained as `load` takes every published one to be.
        said = {} if "layout" in facts else training(model)
        return export_llama(model, directory, said, beside)
    if layout not in LAYOUTS:
        raise MismatchError(
            f"{facts['path']} holds a {facts['kind']!r} network, for which the reference's format has no "
            "place; export it as orbax."
        )
    params = jax.tree.map(np.asarray, model.params)
    sizes, tokenizer = model.config, model.tokenizer
    table = LAYOUTS[layout].table(sizes)
    table = dataclasses.replace(table, mask_row=facts.get("mask_row"))
    prefix, config = HUB_PREFIX, facts.get("published_config")
    if isinstance(sizes, GPT2Config):
        prefix = ""
        bos_id = None if tokenizer is None else tokenizer.bos_id
        config = config or hub_config(sizes, bos_id) | training(model)
    prefix = facts.get("prefix", prefix)
    tensors = _as_stored(write_params(table, params, prefix), table, prefix, facts)
    config = config or reference_config(model)
    if isinstance(sizes, LlamaConfig):
        config = completed(config, sizes, table.mask_row, LAYOUTS[layout], tensors, directory)
    require_described(sizes, LAYOUTS[layout], tensors, prefix, config, directory)
    config = config | unsaid_ends(config, tokenizer)
    return write_repository(directory, tensors, config, tokenizer, beside)


def _as_stored(
    tensors: Mapping[str, np.ndarray], table: Table, prefix: str, facts: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Tensors in the dtypes that a published file has them in, with the copies of tied ones that it has."""
    # Checkpoints of earlier versions hold one dtype for all tensors.
    dtypes, shared = facts.get("dtypes", {}), facts.get("dtype", "F32")
    copies = {copy: tensors[prefix + name] for copy, name in table.tied.items() if copy in dtypes}
    return {
        name: array.astype(FLOATS[dtypes.get(name, shared)], copy=False)
        for name, array in (dict(tensors) | copies).items()
    }


def export_orbax(model: Model | CausalModel, directory: PathLike) -> list[Path]:
    """Writes the parameters and the tokenizer for `sdtt_jax.load`; the model must have a tokenizer.

    An older export of this kind is replaced. `ConfigError` if `load` would find another model there.
    """
    directory, tokenizer = as_path(directory), model.text_tokenizer
    published = not is_remote(directory) and is_published(directory)
    other = directory if published else finished(directory)
    require(
        other in (None, directory / FINAL),
        f"{directory} holds another model, which sdtt_jax.load would read in place of this one ({other}); "
        "choose another folder.",
    )
    facts = {name: value for name, value in model.facts.items() if name not in ("path", "beside")}
    # Of a published model it is known only if its config said it.
    facts |= {} if "layout" in facts else {"normalize": tokenizer.normalize}
    facts |= {"tokenizer": tokenizer.digest}
    # The parameters last: until they are there, nothing can be loaded.
    (directory / "tokenizer").mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, directory / "tokenizer")
    save_params(directory / FINAL, model.params, facts | {"model": to_mapping(model.config)})
    return [directory / FINAL, directory / "tokenizer"]


def training(model: Model | CausalModel) -> dict[str, Any]:
    """Training facts of a model as fields that `sdtt_jax.load` reads: texts, tokenizer, dtype, noise."""
    facts: dict[str, Any] = {"begins_with_bos": False, "sequences": "packed"}
    facts |= {"every": 1} if isinstance(model, CausalModel) else {}
    # Of a published model only what its config said is known; its dtype was the user's choice.
    published = "layout" in model.facts
    facts = model.facts if published else facts | model.facts
    said = {field: facts[fact] for fact, (field, _) in TEXTS.items() if fact in facts}
    said |= {} if published else {"compute_dtype": model.config.compute_dtype}
    said |= {} if model.tokenizer is None else facts_of(model.tokenizer)
    if isinstance(model, Model):
        schedule = dict(model.facts["schedule"])
        said["noise"] = {"type": schedule.pop("kind").replace("-", "")} | {
            name: value for name, value in schedule.items() if value is not None
        }
    return said


def reference_config(model: Model | CausalModel) -> dict[str, Any]:
    """The part of the reference's nested config that describes a network."""
    c = model.config
    sizes: dict[str, Any] = {
        "hidden_size": c.embed_dim,
        "length": c.length,
        "n_blocks": c.num_layers,
        "n_heads": c.num_heads,
        "scale_by_sigma": True,
        "dropout": 0.0,
    }
    kind: dict[str, Any] = {"parameterization": "ar"}
    beside = training(model)
    if isinstance(model, Model):
        sizes["cond_dim"] = model.config.cond_dim
        kind = {
            "parameterization": "subs",
            "time_conditioning": model.config.time_conditioned,
            "noise": beside.pop("noise"),
        }
    return {
        "config": {"model": sizes, **kind},
        **beside,
        "vocab_size": c.vocab_size + 1,
        "mask_index": c.mask_id,
    }
