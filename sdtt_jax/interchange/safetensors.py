"""Safetensors files: tensors are read one at a time, files are written whole or not at all."""

import abc
import collections
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sdtt_jax.errors import CheckpointError
from sdtt_jax.formats import LFS, read_json
from sdtt_jax.paths import as_path, written_whole

# Dtypes of weights, by the format's names.
FLOATS = {
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# A file begins with the length of its header, little-endian; offsets count from the header's end.
LENGTH_BYTES = 8
LONGEST_HEADER = 10**8  # bytes; the library refuses longer ones
# The header's one entry that is not a tensor.
METADATA = "__metadata__"
SUFFIX = ".safetensors"
# What torch.compile, (Distributed)DataParallel, DeepSpeed, FSDP and activation checkpointing put into names.
WRAPPERS = (
    "_orig_mod",
    "module",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of a file by name. Each is read when it is asked for, and none is kept.

    Subclasses implement `_read`; `entries` holds what it needs to know of each tensor, by name. Looking up or
    listing names reads nothing.

    Raises:
      CheckpointError: on reading, a tensor with values that are not finite.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any]):
        self.path, self._entries = path, entries

    @abc.abstractmethod
    def _read(self, name: str) -> np.ndarray:
        """The tensor as the file has it."""

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._read(name)
        # Checking the extremes needs no array of booleans: with a NaN both are NaN.
        values = array.astype(np.float32, copy=False)
        if values.size and not np.isfinite([values.min(), values.max()]).all():
            raise CheckpointError(f"{self.path}: {name} holds NaN or infinite values.")
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class Tensors(TensorFile):
    """A safetensors file, its tensors by their `unwrapped` names.

    The library checks the file, but the bytes are read directly: the library's own reader maps the whole file
    into memory and copies from there, so that 2.4 times the size of a 3.45 GB file was resident instead of
    1.1 times.

    Raises:
      CheckpointError: the file is missing, cut short or not safetensors; on reading, a tensor of a dtype that
        holds no weights, or with values that are not finite.
    """

    def __init__(self, path: Path):
        try:
            with safe_open(path, framework="np"):
                pass
            size, header = _header(path)
        except (SafetensorError, OSError, ValueError) as error:
            require_content(path)
            if path.is_file() and path.suffix != SUFFIX:
                raise CheckpointError(
                    f"{path} is not a {SUFFIX} or .gguf file; give one, or a folder with a model."
                ) from None
            counted = _counted_bytes(path)
            if path.is_file() and counted is not None and path.stat().st_size != counted:
                raise CheckpointError(
                    f"{path} cannot be read as safetensors: it has {path.stat().st_size:,} bytes, but its "
                    f"header counts {counted:,}; download or export it again."
                ) from None
            raise CheckpointError(
                f"{path} cannot be read as safetensors ({error}); download or export it again."
            ) from None
        self._start = LENGTH_BYTES + size
        entries: dict[str, Any] = {}
        for name, entry in header.items():
            bare = unwrapped(name)
            if bare in entries:
                raise CheckpointError(f"{path} has {bare} twice, once as {name}; keep one of them.")
            if name != METADATA:
                entries[bare] = entry
        super().__init__(path, entries)

    def _read(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        if entry["dtype"] not in FLOATS:
            raise CheckpointError(
                f"{self.path}: {name} is {entry['dtype']}; weights must be {', '.join(FLOATS)}."
            )
        dtype, offset = FLOATS[entry["dtype"]], self._start + entry["data_offsets"][0]
        count = math.prod(entry["shape"])
        return np.fromfile(self.path, dtype, count, offset=offset).reshape(entry["shape"])

    @property
    def dtypes(self) -> dict[str, str]:
        """The dtype of each tensor."""
        return {name: str(entry["dtype"]) for name, entry in self._entries.items()}


def require_content(path: Path) -> None:
    """Raises `CheckpointError` if a file only points to its content, as in a clone without Git LFS."""
    if path.is_file():
        with path.open("rb") as file:
            pointer = file.read(len(LFS)) == LFS
        if pointer:
            raise CheckpointError(
                f"{path} is a Git LFS pointer to a file that was not downloaded; run git lfs pull."
            ) from None


def _header(path: Path) -> tuple[int, Any]:
    """Length and content of a file's header; `ValueError` if it is not JSON."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(LENGTH_BYTES), "little")
        content = file.read(min(size, LONGEST_HEADER))
    try:
        return size, json.loads(content)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None


def _counted_bytes(path: Path) -> int | None:
    """The length of a file according to its header; None if the header cannot be read."""
    try:
        size, header = _header(path)
        ends = (entry["data_offsets"][1] for name, entry in header.items() if name != METADATA)
        return LENGTH_BYTES + size + max(map(int, ends), default=0)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError):
        return None


class ShardedTensors(collections.ChainMap[str, np.ndarray]):
    """Safetensors in several files, with an index of which tensor is in which file.

    Raises:
      CheckpointError: the index is damaged, a file is missing or lacks a tensor of the index, or two files
        hold the same tensor.
    """

    def __init__(self, index: Path):
        named = read_index(index)
        files = sorted(set(named.values()))
        absent = [file for file in files if not index.with_name(file).is_file()]
        if absent:
            raise CheckpointError(
                f"{index} names {len(files)} files, of which {', '.join(absent)} "
                f"{'is' if len(absent) == 1 else 'are'} not beside it; download the rest."
            )
        shards = {file: Tensors(index.with_name(file)) for file in files}
        super().__init__(*shards.values())  # type: ignore[arg-type]
        lost = [name for name, file in named.items() if unwrapped(name) not in shards[file]]
        if lost:
            raise CheckpointError(
                f"{index} says that {lost[0]} is in {named[lost[0]]}, which does not hold it; download both "
                "again."
            )
        first: dict[str, str] = {}
        for file, shard in shards.items():
            for name in shard:
                if first.setdefault(name, file) != file:
                    raise CheckpointError(
                        f"{name} is in two of the files that {index} names, {first[name]} and {file}; "
                        "download both again."
                    )
        self.dtypes = {name: of for shard in shards.values() for name, of in shard.dtypes.items()}


def read_index(index: Path) -> dict[str, str]:
    """Maps each tensor to the name of the file, next to the index, that holds it."""
    require_content(index)
    content = read_json(index, CheckpointError, "download it again", "cannot be read as JSON")
    named = content.get("weight_map")
    if not isinstance(named, dict) or not named:
        raise CheckpointError(
            f"{index} is not an index of safetensors files: it has no weight_map; download it again."
        )
    files = {name: str(file) for name, file in named.items()}
    if any("/" in file or "\\" in file or file in ("", ".", "..") for file in files.values()):
        raise CheckpointError(f"{index} names files outside its folder; it is not read.")
    return files


def open_tensors(file: Path) -> Tensors | ShardedTensors:
    """One safetensors file, or several by their index."""
    return ShardedTensors(file) if file.name.endswith(".index.json") else Tensors(file)


def unwrapped(name: str) -> str:
    """A tensor's name without what PyTorch adds for a compiled or distributed module."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file; it appears under its name only once it is complete.

    Arrays may be of any shape and dtype that the format has.
    """
    # The library writes the bytes of a transposed view as they lie in memory, so views are copied.
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    # The hub's libraries refuse files without the metadata `format`.
    try:
        with (
            written_whole(path) as partial,
            # The library's own temporary file would stay for ever if it is killed: its name is no target's.
            tempfile.TemporaryDirectory(prefix=f"{partial.name}.", dir=partial.parent) as folder,
        ):
            whole = as_path(folder) / partial.name
            save_file(contiguous, whole, metadata={"format": "pt"})
            whole.replace(partial)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be written ({error}).") from None
