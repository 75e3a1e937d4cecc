"""Finds the tokenizer of a published model."""

import json
from pathlib import Path

import tokenizers

from sdtt_jax.data import Tokenizer, TokenizerConfig, train_tokenizer
from sdtt_jax.data.making import named_id, special_names
from sdtt_jax.data.tokenizer import HubTokenizer, Special, ends
from sdtt_jax.errors import CheckpointError, DataError
from sdtt_jax.interchange.gguf import GgufTensors
from sdtt_jax.interchange.gguf_tokenizers import gguf_tokenizer
from sdtt_jax.interchange.hub import TOKENIZER_FILES
from sdtt_jax.interchange.layouts import Published
from sdtt_jax.interchange.tables.llama import LLADA, LLAMA, LLAMA_GGUF
from sdtt_jax.networks.config import GPT2Config

# Layouts whose models each have a tokenizer of their own.
HUB_TOKENIZERS = (LLAMA, LLADA, LLAMA_GGUF)
# The least share of an embedding's rows that are tokens; a published model's last rows may be padding.
LEAST_SHARE = 7 / 8


def published_tokenizer(model: Published, folder: Path) -> Tokenizer | None:
    """The tokenizer of a published model; None where there is none that can be read.

    A GGUF file's own is taken if its kind is known, else the tokenizer.json in the folder.

    Raises:
      CheckpointError: it is damaged, has more tokens than the model's embedding has rows, or does not say
        what begins or ends a text.
    """
    if isinstance(model.tensors, GgufTensors):
        found = gguf_tokenizer(model.tensors, model.config.columns, model.mask_row)
        if found is not None:
            return found
    if not has_its_own(model):
        gpt2 = _gpt2()
        return gpt2 if gpt2.vocab_size == model.config.vocab_size else None
    file, beside = (folder / name for name in TOKENIZER_FILES)
    if not file.is_file():
        return None
    try:
        content = file.read_bytes()
        special = _special(model, tokenizers.Tokenizer.from_buffer(content), beside)
        return HubTokenizer(TokenizerConfig(kind="hub"), "none", content, special)
    except (DataError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: {error}") from None
    except CheckpointError:
        raise
    except Exception as error:  # `tokenizers` raises no narrower class
        raise CheckpointError(
            f"{file} cannot be read ({error}); it is cut short or damaged: download it again."
        ) from None


def has_its_own(model: Published) -> bool:
    """Whether a model needs its own tokenizer.json; otherwise it has GPT-2's tokenizer or none."""
    of_gpt2 = isinstance(model.config, GPT2Config)
    return model.layout in HUB_TOKENIZERS or (
        of_gpt2 and model.config.vocab_size != _gpt2().vocab_size
    )


def _gpt2() -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="gpt2"), [])


def _special(model: Published, tokenizer: tokenizers.Tokenizer, beside: Path) -> Special:
    """BOS and EOS, by number in the model's config, or else by name in tokenizer_config.json."""
    mask, rows = model.mask_row, model.config.columns
    # The last row need not be a named token: it is MASK where a causal model was made a denoiser.
    named_by_file = mask not in (None, model.given.mask_id, rows - 1)
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
        found = model.stored.get(f"{which}_token_id")
        found = found[0] if isinstance(found, list) and found else found
        if type(found) is int:
            return found
        return named_id(tokenizer, named, which)

    both = ends(number("bos"), number("eos"))
    if both is None:
        raise CheckpointError(
            f"{model.file}: neither config.json nor tokenizer_config.json beside it says which token ends a "
            "text (eos_token_id)."
        )
    return Special(rows, *both, mask)
