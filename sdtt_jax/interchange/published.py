"""Published checkpoints: safetensors in the reference's layouts or GPT-2's, with their config or without."""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.hub import CONFIG_FILE, TENSORS_FILE
from sdtt_jax.interchange.renaming import find_prefix
from sdtt_jax.interchange.tables import gpt2 as hub_gpt2
from sdtt_jax.interchange.tables.gpt2 import gpt2_config, read_gpt2
from sdtt_jax.interchange.tables.reference import (
    ANCHOR,
    PREFIXES,
    TIME_EMBEDDING,
    read_causal,
    read_denoiser,
)
from sdtt_jax.networks.kinds import CAUSAL, DENOISER, GPT2

# What published models were trained with, where nothing says otherwise.
PUBLISHED_LENGTH = 1024
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# Dtypes of weights, by the format's names.
FLOATS = {
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# A safetensors file begins with the length of its header, little-endian; offsets count from the header's end.
LENGTH_BYTES = 8
# Our field -> names that published configs give it, at any depth.
NAMES = {
    "embed_dim": ("hidden_size", "hidden_dim"),
    "num_layers": ("n_blocks",),
    "num_heads": ("n_heads",),
    "cond_dim": ("cond_dim",),
    "length": ("length", "model_length"),
    "time_conditioned": ("time_conditioning",),
}


class Tensors(Mapping[str, np.ndarray]):
    """A safetensors file as a mapping that reads a tensor when it is asked for.

    The library checks the file; the bytes are read from their place, for its own reader maps the whole file
    into memory and copies out of that: of 3.45 GB, 2.4 times as much was resident, and is 1.1 times now.

    Raises:
      CheckpointError: the file is missing, cut short or no safetensors; on reading, a tensor of a dtype that
        holds no weights, or with values that are not finite.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, framework="np"):  # type: ignore[no-untyped-call]
                pass
            with path.open("rb") as file:
                size = int.from_bytes(file.read(LENGTH_BYTES), "little")
                header = json.loads(file.read(size))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read as safetensors ({error}); download or export it again."
            ) from None
        self._start = LENGTH_BYTES + size
        self._entries: dict[str, Any] = {
            name: entry for name, entry in header.items() if name != "__metadata__"
        }

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        if entry["dtype"] not in FLOATS:
            raise CheckpointError(
                f"{self.path}: {name} is {entry['dtype']}; weights must be {', '.join(FLOATS)}."
            )
        dtype, offset = FLOATS[entry["dtype"]], self._start + entry["data_offsets"][0]
        count = math.prod(entry["shape"])
        array = np.fromfile(self.path, dtype, count, offset=offset).reshape(entry["shape"])
        # The extremes tell without an array of booleans: NaN is both of them.
        values = array.astype(np.float32, copy=False)
        if values.size and not np.isfinite([values.min(), values.max()]).all():
            raise CheckpointError(f"{self.path}: {name} holds NaN or infinite values.")
        return array

    @property
    def dtype(self) -> str:
        """The dtype that all tensors have, "F32" if they differ."""
        found = {str(entry["dtype"]) for entry in self._entries.values()}
        return found.pop() if len(found) == 1 else "F32"

    # Inherited, it would read the tensor to see whether it is there.
    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def is_published(path: Path) -> bool:
    """Whether a local path is a checkpoint in the published layout, or pretends to be one."""
    return path.is_file() or (path / TENSORS_FILE).is_file()


class Published(NamedTuple):
    """A published model, read.

    Attributes:
      kind: one of `sdtt_jax.networks.kinds.KINDS`; "causal" is the reference's causal baseline.
      config: of its network.
      params: its parameters.
      facts: the prefix of its tensors' names, their dtype, and the config as published.
    """

    kind: str
    config: Any
    params: dict[str, Any]
    facts: dict[str, Any]


def read_published(
    path: Path,
    config_path: Path | None = None,
    place: Callable[[str, Any, tuple[str, ...], np.ndarray], Any] | None = None,
) -> Published:
    """A published model; which kind it is, its tensors' names tell.

    Args:
      path: a safetensors file, or a folder with `model.safetensors`.
      config_path: the config's file; the one beside the tensors if None.
      place: given kind and config, puts a parameter of some path where it belongs, as soon as it is read;
        NumPy arrays if None.

    Raises:
      CheckpointError: naming the file and the tensor or field.
    """
    file = path / TENSORS_FILE if path.is_dir() else path
    if file.suffix in PICKLED:
        raise CheckpointError(
            f"{file} is pickled, and unpickling runs what is in a file: it is not read. Where you trust it, "
            "convert it with safetensors.torch.save_file(state_dict, 'model.safetensors')."
        )
    beside = file.with_name(CONFIG_FILE)
    config_path = config_path or (beside if beside.is_file() else None)
    stored = _stored_config(config_path) if config_path else {}
    tensors = Tensors(file)
    kind = _kind(tensors, str(file))

    def put(config: Any, at: tuple[str, ...], value: np.ndarray) -> Any:
        return value if place is None else place(kind, config, at, value)

    if kind == GPT2:
        if not stored:
            raise CheckpointError(
                f"{file} holds a GPT-2, whose sizes its {CONFIG_FILE} says: put that beside it."
            )
        config: Any = gpt2_config(stored, str(config_path))
        params = read_gpt2(config, tensors, where=str(file), place=functools.partial(put, config))
        prefix = find_prefix(tensors, hub_gpt2.ANCHOR, hub_gpt2.PREFIXES, str(file))
    else:
        told = {field: _find(stored, names) for field, names in NAMES.items()}
        read: Any = read_causal
        if kind == DENOISER:
            time_conditioned = bool(told["time_conditioned"])
            read = functools.partial(read_denoiser, time_conditioned=time_conditioned)
        length = told["length"] or PUBLISHED_LENGTH
        config, params = read(tensors, length=length, where=str(file), place=put)
        prefix = find_prefix(tensors, ANCHOR, PREFIXES, str(file))
        _compare(config, told, f"{config_path}", str(file))
    facts = {"published_config": stored, "prefix": prefix, "dtype": tensors.dtype}
    return Published(kind, config, params, facts)


def _kind(tensors: Mapping[str, Any], where: str) -> str:
    for kind, anchor, prefixes in (
        (DENOISER, TIME_EMBEDDING, PREFIXES),
        (CAUSAL, ANCHOR, PREFIXES),
        (GPT2, hub_gpt2.ANCHOR, hub_gpt2.PREFIXES),
    ):
        if any(prefix + anchor in tensors for prefix in prefixes):
            return kind
    raise CheckpointError(
        f"{where} is neither a denoiser or causal baseline of the reference (no {ANCHOR}) nor a GPT-2 (no "
        f"{hub_gpt2.ANCHOR})."
    )


def _compare(config: Any, told: Mapping[str, Any], config_path: str, file: str) -> None:
    for field in ("embed_dim", "num_layers", "num_heads", "cond_dim"):
        found = getattr(config, field, None)
        if found is not None and told[field] is not None and told[field] != found:
            raise CheckpointError(
                f"{config_path} says {NAMES[field][0]}={told[field]}, but the tensors of {file} have "
                f"{found}; they belong to different models."
            )


def _stored_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object.")
    return content


def _find(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first plain value under one of `names`, the sections "model" and "config" first."""
    for name in names:
        value = config.get(name)
        if isinstance(value, (bool, int)):
            return value
    sections = sorted(config.items(), key=lambda item: item[0] not in ("model", "config"))
    for _, section in sections:
        if isinstance(section, Mapping):
            found = _find(section, names)
            if found is not None:
                return found
    return None
