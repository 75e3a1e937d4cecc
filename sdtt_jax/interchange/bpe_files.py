"""Tokenizers published as vocab.json and merges.txt, without a tokenizer.json: Dream's, many a GPT-2's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sdtt_jax.data.making import NAMES_FILE, special_names
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.hub import ADDED_FILES, BPE_FILES

# The classes whose code cuts and normalises texts as Qwen2's does, by `tokenizer_class`.
QWEN2_CLASSES = ("DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast")
# The same for GPT-2, whose models need not name a class.
GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
GPT2_END = "<|endoftext|>"  # which that code takes out of texts, whether or not a file says so


def cut_words(digits: str) -> pre_tokenizers.PreTokenizer:
    """Cuts texts as Llama 3 and Qwen2 do, which differ only in the pattern of their groups of digits."""
    letters = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    others = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    words = tokenizers.Regex(f"{letters}|{digits}|{others}")
    split = pre_tokenizers.Split(words, "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, in_bytes])


def tokenizer_of_files(folder: Path, gpt2_rows: int | None = None) -> bytes | None:
    """The tokenizer.json that a folder's files amount to; None if they are not there, or of another kind.

    `gpt2_rows` is the rows of a GPT-2's embedding, and None for a model of the Llama family.

    Raises:
      CheckpointError: a file is damaged.
    """
    vocabulary, merges = (folder / name for name in BPE_FILES)
    named = special_names(folder / NAMES_FILE, CheckpointError)
    classes = QWEN2_CLASSES if gpt2_rows is None else GPT2_CLASSES
    known = named.content.get("tokenizer_class") in classes
    if not (known and vocabulary.is_file() and merges.is_file()):
        return None
    try:
        tokens = json.loads(vocabulary.read_text("utf-8"))
        listed = (
            named.content if gpt2_rows is None else {"added_tokens_decoder": {}, **named.content}
        )
        added = {int(i): token for i, token in listed["added_tokens_decoder"].items()}
        if gpt2_rows is not None:
            added = {
                i: t for i, t in (_gpt2_added(folder, tokens) | added).items() if i < gpt2_rows
            }
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
    if gpt2_rows is not None:
        space = bool(named.content.get("add_prefix_space"))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    else:
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = cut_words(r"\p{N}")
    made.decoder = decoders.ByteLevel()
    return made.to_str().encode()


def _gpt2_added(folder: Path, tokens: Mapping[str, int]) -> dict[int, dict[str, Any]]:
    """The tokens that the hub's class for GPT-2 takes out of texts: named in any file, or with a number."""
    numbered, by_map, by_config = (
        special_names(folder / name, CheckpointError).content for name in (*ADDED_FILES, NAMES_FILE)
    )
    named = {"end_token": GPT2_END} | dict(by_map) | dict(by_config)
    values = [value for field, value in named.items() if field.endswith("_token")]
    values += named.get("additional_special_tokens") or []
    names = [str(value.get("content") if isinstance(value, dict) else value) for value in values]
    numbers = {name: tokens[name] for name in names if name in tokens} | dict(numbered)
    return {number: {"content": name, "special": True} for name, number in numbers.items()}
