"""Tokenizers of GGUF files: the byte-level kinds of GPT-2, SmolLM and Llama 3, and Llama 2's pieces."""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sdtt_jax.data import TokenizerConfig
from sdtt_jax.data.tokenizer import HubTokenizer, Special
from sdtt_jax.errors import CheckpointError, DataError
from sdtt_jax.interchange.bpe_files import cut_words
from sdtt_jax.interchange.gguf import GgufTensors

START = "tokenizer.ggml."
# Kinds of tokens, as the files number them. Control tokens and user-defined ones are not text.
TEXT, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
SPACE = "▁"  # in Llama 2's pieces
# How texts are cut before pieces are merged, by the name that GGUF files give it.
LLAMA3 = "llama-bpe"
_GPT2_CUTS = pre_tokenizers.ByteLevel(add_prefix_space=False)
_DIGITS = pre_tokenizers.Digits(individual_digits=True)
_CUTS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": pre_tokenizers.Sequence([_GPT2_CUTS]),
    "smollm": pre_tokenizers.Sequence([_DIGITS, _GPT2_CUTS]),
    LLAMA3: cut_words(r"\p{N}{1,3}"),
}


def gguf_tokenizer(
    tensors: GgufTensors, rows: int, mask_row: int | None = None
) -> HubTokenizer | None:
    """The file's tokenizer; None if its kind is not supported.

    `rows` and `mask_row` are as in `Special`.

    Raises:
      CheckpointError: the tokenizer lacks tokens, merges or special tokens, or has those of another model.
    """
    fields = {
        name.removeprefix(START): value
        for name, value in tensors.fields.items()
        if name.startswith(START)
    }
    model = fields.get("model")
    if model != "llama" and not (model == "gpt2" and str(fields.get("pre")) in _CUTS):
        return None
    try:
        pieces = fields["tokens"]
        types = fields.get("token_type", [TEXT] * len(pieces))
        bos, eos = (fields[f"{name}_token_id"] for name in ("bos", "eos"))
        kinds = list(zip(pieces, types, strict=True))
        made = _llama2(fields, pieces, types) if model == "llama" else _byte_level(fields, pieces)
    except KeyError as error:
        raise CheckpointError(
            f"{tensors.path}: its tokenizer lacks the field {START}{error.args[0]}; the file is damaged, or "
            "was converted without it."
        ) from None
    except Exception as error:  # `tokenizers` raises no narrower class, and writes several lines
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"{tensors.path}: its tokenizer cannot be read ({said}); the file is damaged."
        ) from None
    made.add_special_tokens(
        [
            tokenizers.AddedToken(piece, special=True, normalized=False)
            for piece, kind in kinds
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    special = Special(rows, int(bos), int(eos), mask_row)
    try:
        return HubTokenizer(TokenizerConfig(kind="hub"), "none", made.to_str().encode(), special)
    except DataError as error:
        raise CheckpointError(f"{tensors.path}: {error}") from None


def _byte_level(fields: Mapping[str, Any], pieces: Sequence[str]) -> tokenizers.Tokenizer:
    kind = str(fields["pre"])
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    merges = [tuple(pair.split(" ", 1)) for pair in fields["merges"]]
    # In Llama 3, a word that is a token is taken whole and not merged from parts.
    bpe = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=kind == LLAMA3)
    made = tokenizers.Tokenizer(bpe)
    made.pre_tokenizer = _CUTS[kind]
    made.decoder = decoders.ByteLevel()
    return made


def _llama2(
    fields: Mapping[str, Any], pieces: Sequence[str], types: Sequence[int]
) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: of the neighbours that form a piece, those with the highest score merge first."""
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    scored = zip(pieces, fields["scores"], types, strict=True)
    texts = {piece: float(score) for piece, score, kind in scored if kind == TEXT}
    pairs = [
        (piece[:at], piece[at:])
        for piece in sorted(texts, key=lambda piece: -texts[piece])
        for at in range(1, len(piece))
        if piece[:at] in texts and piece[at:] in texts
    ]
    unknown = [piece for piece, kind in zip(pieces, types, strict=True) if kind == UNKNOWN]
    # Text that no piece spells is written in bytes, or is unknown where the vocabulary lacks the bytes.
    bpe = models.BPE(
        vocab=vocabulary,
        merges=pairs,
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    made = tokenizers.Tokenizer(bpe)
    before = [normalizers.Prepend(SPACE)] if fields.get("add_space_prefix", True) else []
    made.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if before else []
    made.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return made
