"""Tokenizers that are published as vocab.json and merges.txt, without a tokenizer.json, as Dream's is."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sdtt_jax.data.making import NAMES_FILE, special_names
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.hub import BPE_FILES

# The classes whose code cuts and normalises texts as Qwen2's does, by `tokenizer_class`.
QWEN2_CLASSES = ("DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast")


def cut_words(digits: str) -> pre_tokenizers.PreTokenizer:
    """Cuts texts as Llama 3 and Qwen2 do, which differ only in the pattern of their groups of digits."""
    letters = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    others = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    words = tokenizers.Regex(f"{letters}|{digits}|{others}")
    split = pre_tokenizers.Split(words, "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, in_bytes])


def tokenizer_of_files(folder: Path) -> bytes | None:
    """The tokenizer.json that a folder's files amount to; None if they are not there, or of another kind.

    Raises:
      CheckpointError: a file is damaged.
    """
    vocabulary, merges = (folder / name for name in BPE_FILES)
    named = special_names(folder / NAMES_FILE, CheckpointError)
    known = named.content.get("tokenizer_class") in QWEN2_CLASSES
    if not (known and vocabulary.is_file() and merges.is_file()):
        return None
    try:
        added = {int(i): token for i, token in named.content["added_tokens_decoder"].items()}
        tokens = json.loads(vocabulary.read_text("utf-8"))
        # With the numbers that the file gives them, which need not follow each other.
        tokens |= {token["content"]: number for number, token in added.items()}
        lines = merges.read_text("utf-8").split("\n")
        lines = [line for line in lines if line and not line.startswith("#version")]
        pairs = [(left, right) for left, right in (line.split(" ") for line in lines)]
        made = tokenizers.Tokenizer(models.BPE(tokens, pairs))
        made.add_tokens([tokenizers.AddedToken(**token) for _, token in sorted(added.items())])
    except Exception as error:  # `tokenizers` raises no narrower class
        raise CheckpointError(
            f"{vocabulary}, {merges.name} and {NAMES_FILE} make no tokenizer ({error}); download them again."
        ) from None
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = cut_words(r"\p{N}")
    made.decoder = decoders.ByteLevel()
    return made.to_str().encode()
