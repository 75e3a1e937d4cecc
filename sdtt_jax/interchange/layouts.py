"""The table of layouts of published checkpoints: safetensors, with or without their config, and GGUF."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.formats import read_json
from sdtt_jax.interchange.adapters import network_shardings
from sdtt_jax.interchange.found import ADAPTER_FILE, FOREIGN, PICKLED, TO_SAFETENSORS, describe
from sdtt_jax.interchange.gguf import SUFFIX, GgufTensors
from sdtt_jax.interchange.hub import CONFIG_FILE, INDEX_FILE, TENSORS_FILE
from sdtt_jax.interchange.relatives import as_llama
from sdtt_jax.interchange.renaming import (
    NOTHING_GIVEN,
    Given,
    Layout,
    Place,
    Stored,
    find_prefix,
    read_params,
)
from sdtt_jax.interchange.safetensors import open_tensors, require_content
from sdtt_jax.interchange.tables.gpt2 import DIFFUGPT, GPT2
from sdtt_jax.interchange.tables.llama import LLADA, LLAMA, LLAMA_GGUF
from sdtt_jax.interchange.tables.reference import CAUSAL, DENOISER
from sdtt_jax.networks.base import Network
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.placement import place as place_pieces
from sdtt_jax.trees import flat_leaves
from sdtt_jax.typing import Params

# A file of a model that is stored in several.
SHARD = re.compile(r"-\d+-of-(?P<parts>\d+)\.safetensors$")
# Layouts whose models bring their own tokenizer.
LLAMA_LAYOUTS = (LLAMA, LLADA, LLAMA_GGUF)
# Layouts whose models may have vocab.json and merges.txt instead of a tokenizer.json.
BPE_LAYOUTS = (GPT2, DIFFUGPT, *LLAMA_LAYOUTS)
# In the order in which they are tried: a denoiser has the causal baseline's tensors too.
LAYOUTS = {layout.name: layout for layout in (DENOISER, CAUSAL, GPT2, DIFFUGPT, *LLAMA_LAYOUTS)}


class Published(NamedTuple):
    """A published model, recognised; its parameters are not read yet."""

    layout: Layout  # the layout that it is stored in
    tensors: Mapping[str, np.ndarray]  # name to array
    prefix: str  # of the tensors' names
    config: Any  # the config of our network
    stored: Stored  # the published config, empty if there is none
    file: str  # the file of the tensors
    # MASK in the published numbering of tokens, where it is not the last.
    mask_row: int | None


def is_published(path: Path) -> bool:
    """Whether a local path is a file, or a folder with `model.safetensors` or the index of several files."""
    return path.is_file() or any((path / name).is_file() for name in (TENSORS_FILE, INDEX_FILE))


def open_published(path: Path, given: Given = NOTHING_GIVEN) -> Published:
    """Recognises a published model by the names of its tensors; its config is the one next to them.

    Args:
      path: a safetensors or GGUF file, the index of several files, or a folder with `model.safetensors` or
        an index.
      given: what the user specifies about the model.

    Raises:
      CheckpointError: naming the file and the tensor or field.
    """
    file = path
    if path.is_dir():
        file = path / (TENSORS_FILE if (path / TENSORS_FILE).is_file() else INDEX_FILE)
        if (path / ADAPTER_FILE).is_file():
            raise CheckpointError(
                f"{path} holds an adapter (LoRA) beside {file.name}: merge it into the model first, or give "
                f"{file} to load the model without it."
            )
    part = SHARD.search(file.name)
    if part is not None and int(part["parts"]) > 1:
        raise CheckpointError(
            f"{file} is one of the {int(part['parts'])} files of a model: give their folder, {file.parent}, "
            f"with {INDEX_FILE}."
        )
    if file.suffix in PICKLED:
        raise CheckpointError(
            f"{file} is pickled and is not read: unpickling a file runs the code in it. {TO_SAFETENSORS}"
        )
    if file.name == ADAPTER_FILE or file.name.endswith(FOREIGN):
        raise CheckpointError(f"{file} is not a model that can be read. {describe([file.name])}")
    if file.suffix.lower() == SUFFIX:
        gguf = GgufTensors(file)
        return recognised(LLAMA_GGUF, gguf, Stored(gguf.content, str(file), given), str(file))
    stored = _stored(file.with_name(CONFIG_FILE), given)
    tensors, stored = as_llama(open_tensors(file), stored, str(file))
    for layout in LAYOUTS.values():
        if any(prefix + layout.anchor in tensors for prefix in layout.prefixes):
            return recognised(layout, tensors, stored, str(file))
    first, says = next(iter(sorted(tensors)), "none"), stored.content.get("model_type")
    said = f", and its config says model_type={says!r}" if says else ""
    raise CheckpointError(
        f"{file} is neither a denoiser or causal baseline of the reference (no {CAUSAL.anchor}), nor a GPT-2 "
        f"(no {GPT2.anchor}) or DiffuGPT, nor of the Llama family (no {LLAMA.anchor} or {LLADA.anchor}): the "
        f"first of its {len(tensors)} tensors is {first}{said}."
    )


def recognised(
    layout: Layout, tensors: Mapping[str, Any], stored: Stored, file: str = "the checkpoint"
) -> Published:
    """A published model of a known layout, from its tensors by full name and the config next to them.

    Errors name `file`, and the tensor or field that does not belong to such a model.
    """
    if stored.given != NOTHING_GIVEN and layout not in LLAMA_LAYOUTS:
        raise CheckpointError(
            f"{file} has the layout {layout.name!r}, whose networks are all of one kind; leave out "
            f"{', '.join(stored.given.given_names)}."
        )
    prefix = find_prefix(tensors, layout.anchor, layout.prefixes, file)
    config = layout.config(tensors, prefix, stored, file)
    try:
        config.check_filled()
    except ConfigError as error:
        raise CheckpointError(f"{stored.where if stored.content else file}: {error}") from None
    mask_row = layout.mask_row(config, stored)
    return Published(layout, tensors, prefix, config, stored, file, mask_row)


def published_params(model: Published, place: Place | None = None) -> dict[str, Any]:
    """The parameters of a published model, float32; `place`, and errors, as of `read_params`."""
    table = dataclasses.replace(model.layout.table(model.config), mask_row=model.mask_row)
    return read_params(table, model.tensors, model.prefix, model.file, place)


def placed_params(model: Published, network: Network, mesh: Mesh | None, name: str) -> Params:
    """The parameters of a published model, float32, on the first device or spread over a mesh.

    They are spread by the rules of training. The `network` is made from the model's config; errors call the
    model by `name`.

    Raises:
      CheckpointError: as of `published_params`.
      ConfigError: the mesh cannot split the network; on all its processes: they have read different values.
    """
    places = {} if mesh is None else flat_leaves(network_shardings(network, mesh, name=name))
    several = mesh is not None and mesh.is_multi_process
    digests: dict[str, str] = {}

    def place(at: str, value: np.ndarray) -> jax.Array:
        if several:
            digests[at] = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        # Every process reads the file and takes the pieces of its own devices; `device_put` would first send
        # whole arrays between the processes to compare them.
        placed = place_pieces(value, places[at]) if places else jax.device_put(value)
        # Waiting keeps at most one parameter in memory twice.
        return jax.block_until_ready(placed)

    params = published_params(model, place)
    if several:
        processes.require_same(
            f"The model {name}",
            digests,
            "copy the same files to all hosts, or name a revision of the hub, OWNER/NAME@REVISION",
        )
    return params


def _stored(path: Path, given: Given) -> Stored:
    """The config in a file; an empty one if there is no such file."""
    if not path.is_file():
        return Stored({}, given=given)
    require_content(path)
    content = read_json(path, CheckpointError, "download it again", "cannot be read as JSON")
    return Stored(content, str(path), given)
