"""Safetensors files as plain dicts of numpy arrays."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sdtt_jax.errors import CheckpointError


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by name.

    Raises:
      CheckpointError: when the file is missing, truncated or not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; name an existing .safetensors file.")
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}); download or export it again."
        ) from None


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file; it appears under its name only once it is complete."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    # The library writes the bytes of a transposed view as they lie in memory, so views are copied.
    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    # Hub libraries refuse files without this note of who may read them.
    save_file(contiguous, partial, metadata={"format": "pt"})
    partial.replace(path)
