"""Finds the tokenizer of a published model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from sdtt_jax.data import Gpt2Tokenizer, Tokenizer, TokenizerConfig
from sdtt_jax.data.making import special_names
from sdtt_jax.data.tokenizer import HubTokenizer, Special, ends
from sdtt_jax.data.tokenizer_json import read_tokenizer
from sdtt_jax.errors import CheckpointError, DataError
from sdtt_jax.interchange.bpe_files import tokenizer_of_files
from sdtt_jax.interchange.claims import NORMALIZE, claimed
from sdtt_jax.interchange.gguf import GgufTensors
from sdtt_jax.interchange.gguf_tokenizers import gguf_tokenizer
from sdtt_jax.interchange.hub import BPE_FILES, TOKENIZER_FILES
from sdtt_jax.interchange.layouts import BPE_LAYOUTS, LLAMA_LAYOUTS, Published
from sdtt_jax.interchange.safetensors import require_content
from sdtt_jax.paths import as_path

# The least share of an embedding's rows that are tokens; a published model's last rows may be padding.
LEAST_SHARE = 7 / 8
# Texts that a tokenizer with GPT-2's vocabulary reads otherwise if it normalises or cuts them otherwise.
PROBES = ("Hello world", " Hello\n\n  it's 1984 ", "ÉCOLE e\u0301 “日本”")


def published_tokenizer(model: Published) -> Tokenizer | None:
    """The tokenizer of a published model; None where there is none that can be read.

    A GGUF file's own is taken if its kind is known, else the tokenizer.json next to it, or for the Llama
    family and GPT-2 what vocab.json and merges.txt amount to (`bpe_files`). A model of GPT-2's size has
    GPT-2's tokenizer if there is no such file, or if it holds GPT-2's vocabulary and reads texts as GPT-2's
    does, unless its config names another by its digest.

    Raises:
      CheckpointError: it is damaged, has more tokens than the model's embedding has rows, or does not say
        what begins or ends a text.
    """
    if isinstance(model.tensors, GgufTensors):
        found = gguf_tokenizer(model.tensors, model.config.columns, model.mask_row)
        if found is not None:
            special = found.special
            _require_own_mask(model, special.mask_row, (special.bos_id, special.eos_id))
            return found
    normalize = claimed(model.stored, ("tokenizer_normalize",), NORMALIZE, "none")
    folder = as_path(model.file).parent
    for name in (*TOKENIZER_FILES, *BPE_FILES):
        require_content(folder / name)
    llama = model.layout in LLAMA_LAYOUTS
    gpt2 = None if llama else _gpt2(model, normalize)
    file, beside = (folder / name for name in TOKENIZER_FILES)
    content = None
    if model.layout in BPE_LAYOUTS and not file.is_file():
        content = tokenizer_of_files(folder, None if llama else model.config.columns)
    if content is None and not file.is_file():
        return gpt2
    try:
        content = content or file.read_bytes()
        theirs = read_tokenizer(content)
        usual = None
        if gpt2 is not None and gpt2.is_vocabulary_of(theirs):
            usual = gpt2.bos_id, gpt2.eos_id
            read = theirs.encode_batch(list(PROBES), add_special_tokens=False)
            ours = gpt2.encode_normalized(list(PROBES))
            if all(a.ids == b.tolist() for a, b in zip(read, ours, strict=True)):
                return gpt2
        special = _special(model, theirs, beside, usual)
        return HubTokenizer(TokenizerConfig(kind="hub"), normalize, content, special)
    except (DataError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: {error}") from None
    except CheckpointError:
        raise
    except Exception as error:  # `tokenizers` raises no narrower class
        raise CheckpointError(
            f"{file} cannot be read ({error}); it is cut short or damaged: download it again."
        ) from None


def _gpt2(model: Published, normalize: str) -> Gpt2Tokenizer | None:
    """GPT-2's tokenizer if it has the model's size, and the config does not name another one."""
    gpt2 = Gpt2Tokenizer(TokenizerConfig(kind="gpt2"), normalize)
    named = model.stored.content.get("tokenizer_digest") in (None, gpt2.digest)
    return gpt2 if named and gpt2.vocab_size == model.config.vocab_size else None


def _special(
    model: Published,
    tokenizer: tokenizers.Tokenizer,
    beside: Path,
    usual: tuple[int, int] | None,
) -> Special:
    """BOS and EOS, by number in the model's config, or else by name in tokenizer_config.json, or as usual."""
    mask, rows = _numbering(model, tokenizer)
    # The last row need not be a named token: it is MASK where a causal model was made a denoiser.
    named_by_file = mask not in (None, model.stored.given.mask_id, rows - 1)
    if named_by_file and tokenizer.id_to_token(mask or 0) is None:
        raise CheckpointError(
            f"{model.file}: token {mask} should be MASK, but tokenizer.json beside it has no such token; "
            "pass mask_id=… to confirm or correct it."
        )
    named = special_names(beside, CheckpointError)
    count = tokenizer.get_vocab_size()
    if count < LEAST_SHARE * rows:
        raise CheckpointError(
            f"{model.file}: its embedding has {rows} rows, but tokenizer.json beside it has only {count} "
            "tokens; it belongs to another model."
        )

    def number(which: str) -> int | None:
        said = _said(model.stored.content, which)
        return named.number(tokenizer, which) if said is None else said

    both = ends(number("bos"), number("eos")) or usual
    if both is None:
        raise CheckpointError(
            f"{model.file}: neither config.json nor tokenizer_config.json beside it says which token ends a "
            "text (eos_token_id)."
        )
    _require_own_mask(model, mask, both)
    return Special(rows, *both, mask)


def _numbering(model: Published, tokenizer: tokenizers.Tokenizer) -> tuple[int | None, int]:
    """MASK and the number of tokens, in the numbering of the tokenizer.json."""
    size, mask = model.config.vocab_size, model.mask_row
    llama = model.layout in LLAMA_LAYOUTS
    if not llama or mask == size:
        # MASK is the last row of the tensors, wherever the tokenizer has it, if it has one.
        mask = model.stored.content.get("tokenizer_mask_row", mask)
    if not llama and mask is None and tokenizer.get_vocab_size() > size:
        mask = getattr(model.config, "mask_id", None)
    return mask, size + (mask is not None)


def published_ends(model: Published) -> tuple[int, int] | None:
    """BOS and EOS of a model without a tokenizer, in this library's numbering; None if unknown.

    Raises:
      CheckpointError: one of them is MASK or no token of the model.
    """
    said = {which: _said(model.stored.content, which) for which in ("bos", "eos")}
    found, mask = ends(*said.values()), model.mask_row
    if found is not None:
        _require_own_mask(model, mask, found)
    most = model.config.vocab_size - (mask is None)
    for which, number in said.items():
        if number is not None and not 0 <= number <= most:
            raise CheckpointError(
                f"{model.stored.where}: {which}_token_id must be one of the model's tokens, 0 to {most}, not "
                f"{number}."
            )
    return found if found is None or mask is None else tuple(i - (i > mask) for i in found)  # type: ignore[return-value]


def _require_own_mask(model: Published, mask: int | None, both: tuple[int, int]) -> None:
    """Raises `CheckpointError` if MASK is also BOS or EOS, so that texts could not end."""
    if mask in both:
        raise CheckpointError(
            f"{model.file}: token {mask} is both MASK and {'BOS' if mask == both[0] else 'EOS'}; pass "
            f"mask_id=…, or correct bos_token_id or eos_token_id in {model.stored.where}."
        )


def facts_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Fields of an exported model's config that identify its tokenizer, so that no other one is used."""
    special = tokenizer.special if isinstance(tokenizer, HubTokenizer) else None
    numbered = special or tokenizer
    said: dict[str, Any] = {
        "tokenizer_digest": tokenizer.digest,
        "tokenizer_normalize": tokenizer.normalize,
        "bos_token_id": numbered.bos_id,
        "eos_token_id": numbered.eos_id,
    }
    return said if special is None else said | {"tokenizer_mask_row": special.mask_row}


def unsaid_ends(content: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, int]:
    """BOS and EOS of a published tokenizer as fields of its model's config, unless `content` says them."""
    if not isinstance(tokenizer, HubTokenizer):
        return {}
    bos_id, eos_id = tokenizer.special.bos_id, tokenizer.special.eos_id
    if ends(_said(content, "bos"), _said(content, "eos")) == (bos_id, eos_id):
        return {}
    return {"bos_token_id": bos_id, "eos_token_id": eos_id}


def _said(content: Mapping[str, Any], which: str) -> int | None:
    """The number of BOS or EOS ("bos", "eos") in a model's config, the first of several; None if unsaid."""
    said = content.get(f"{which}_token_id")
    found = (said or [None])[0] if isinstance(said, list) else said
    if found is not None and type(found) is not int:
        raise CheckpointError(
            f"{which}_token_id in the model's config.json must be the number of a token, a list of such "
            f"numbers, or null, not {said!r:.60}."
        )
    return found
