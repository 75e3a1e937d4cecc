"""The table of layouts of published checkpoints: safetensors files, with or without their config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.found import FOREIGN, INDEX, PICKLED, TO_SAFETENSORS, describe
from sdtt_jax.interchange.hub import CONFIG_FILE, TENSORS_FILE
from sdtt_jax.interchange.renaming import (
    NOTHING_STORED,
    Layout,
    Place,
    Stored,
    find_prefix,
    read_params,
)
from sdtt_jax.interchange.safetensors import Tensors
from sdtt_jax.interchange.tables.gpt2 import GPT2
from sdtt_jax.interchange.tables.reference import CAUSAL, DENOISER
from sdtt_jax.paths import read_json

# By kind of network, in the order in which they are tried: a denoiser has the causal baseline's tensors too.
LAYOUTS = {layout.kind: layout for layout in (DENOISER, CAUSAL, GPT2)}


class Published(NamedTuple):
    """A published model, recognised; its parameters are not read yet.

    Attributes:
      layout: in which it is stored.
      tensors: name to array.
      prefix: of the names.
      config: of our network.
      stored: the config that it came with, empty if it came without.
      file: that errors name.
      dtype: of the tensors, by safetensors' name.
    """

    layout: Layout
    tensors: Mapping[str, np.ndarray]
    prefix: str
    config: Any
    stored: Mapping[str, Any]
    file: str
    dtype: str = "F32"


def is_published(path: Path) -> bool:
    """Whether a local path is a file, or a folder with `model.safetensors`."""
    return path.is_file() or (path / TENSORS_FILE).is_file()


def open_published(path: Path, config_path: Path | None = None) -> Published:
    """Recognises a published model by the names of its tensors.

    Args:
      path: a safetensors file, or a folder with `model.safetensors`.
      config_path: the config's file; the one beside the tensors if None.

    Raises:
      CheckpointError: naming the file and the tensor or field.
    """
    file = path / TENSORS_FILE if path.is_dir() else path
    if file.suffix in PICKLED:
        raise CheckpointError(
            f"{file} is pickled, and unpickling runs what is in a file: it is not read. {TO_SAFETENSORS}"
        )
    if file.name.endswith((*FOREIGN, INDEX)):
        raise CheckpointError(f"{file} is no model that can be read. {describe([file.name])}")
    beside = file.with_name(CONFIG_FILE)
    config_path = config_path or (beside if beside.is_file() else None)
    stored = _stored(config_path) if config_path else NOTHING_STORED
    tensors = Tensors(file)
    for layout in LAYOUTS.values():
        if any(prefix + layout.anchor in tensors for prefix in layout.prefixes):
            return recognised(layout, tensors, stored, str(file))._replace(dtype=tensors.dtype)
    raise CheckpointError(
        f"{file} is neither a denoiser or causal baseline of the reference (no {CAUSAL.anchor}) nor a GPT-2 "
        f"(no {GPT2.anchor})."
    )


def recognised(
    layout: Layout,
    tensors: Mapping[str, Any],
    stored: Stored = NOTHING_STORED,
    file: str = "the checkpoint",
) -> Published:
    """A published model whose layout is known.

    Args:
      layout: one of `LAYOUTS`.
      tensors: full name to array.
      stored: the config that they came with.
      file: that errors name.

    Raises:
      CheckpointError: naming the tensor or field that does not belong to such a model.
    """
    prefix = find_prefix(tensors, layout.anchor, layout.prefixes, file)
    config = layout.config(tensors, prefix, stored, file)
    return Published(layout, tensors, prefix, config, stored.content, file)


def published_params(model: Published, place: Place | None = None) -> dict[str, Any]:
    """The parameters of a published model, float32.

    Args:
      model: as `open_published` found it.
      place: path and array of a parameter to what stands in the tree, called as soon as one is read; the
        NumPy array itself if None.

    Raises:
      CheckpointError: naming missing, unexpected or ill-shaped tensors, or one that should repeat another and
        does not.
    """
    layout, tensors, prefix, where = model.layout, model.tensors, model.prefix, model.file
    for copy, name in layout.tied.items():
        if copy in tensors and not np.array_equal(tensors[copy], tensors[prefix + name]):
            raise CheckpointError(
                f"{where}: {copy} differs from {prefix + name}; this network ties them."
            )
    table = layout.table(model.config)
    return read_params(table, tensors, prefix, where, place, beside=tuple(layout.tied))


def _stored(path: Path) -> Stored:
    content = read_json(path, CheckpointError, fault="cannot be read as JSON")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object.")
    return Stored(content, str(path))
