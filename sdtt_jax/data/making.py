"""Makes a tokenizer: learned from the train split, or read from a file of the user's."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from sdtt_jax.config import require
from sdtt_jax.data.config import TokenizerConfig
from sdtt_jax.data.tokenizer import (
    HUB_FILE,
    MODEL_FILE,
    Gpt2Tokenizer,
    HubTokenizer,
    SentencePieceTokenizer,
    Special,
    Tokenizer,
    ends,
)
from sdtt_jax.data.tokenizer_json import read_tokenizer
from sdtt_jax.data.vocabulary import Sample, learn_pieces
from sdtt_jax.errors import DataError, UserError
from sdtt_jax.formats import read_json
from sdtt_jax.paths import as_path

# The file next to a tokenizer.json that names its special tokens.
NAMES_FILE = "tokenizer_config.json"
# What special tokens are usually called, for where nothing names them.
_USUAL = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]"),
}


def train_tokenizer(
    config: TokenizerConfig, texts: Iterable[str], normalize: str = "none"
) -> Tokenizer:
    """Learns a vocabulary from the train split, unless the config names an existing one.

    Args:
      config: kind and size.
      texts: documents, already normalised; read once, and only for SentencePiece.
      normalize: the normalisation that they went through; `encode` repeats it.

    Raises:
      ConfigError: `tokenizer.vocab_size` does not suit the text (the message says which sizes do), or
        `tokenizer.file` does not exist.
      DataError: there is no text, or a character that cannot be learned (the message says which and where),
        or `tokenizer.file` is not a vocabulary.
    """
    require(
        config.kind != "hub",
        "tokenizer.kind='hub' is only for published models, which bring their own tokenizer; choose "
        "'sentencepiece' or 'gpt2'.",
    )
    if config.kind == "gpt2":
        return Gpt2Tokenizer(config, normalize)
    if config.kind == "file":
        return given_tokenizer(config, normalize)
    sample = Sample(texts, config.max_sentences)
    model = learn_pieces(config, sample)
    tokenizer = SentencePieceTokenizer(config, normalize, model)
    _require_known(tokenizer, sample.characters)
    return tokenizer


def _require_known(tokenizer: SentencePieceTokenizer, characters: dict[str, int]) -> None:
    """Refuses a vocabulary that encodes a character of its own train split as unk."""
    alphabet = list(characters)
    lost = [
        character
        for character, ids in zip(alphabet, tokenizer._encode_batch(alphabet), strict=True)
        if tokenizer.unk_id in ids
    ]
    if lost:
        named = ", ".join(f"U+{ord(character):04X}" for character in lost[:8])
        # A vocabulary of characters cannot fall back to bytes.
        bytes_too = "tokenizer.byte_fallback=True or " * (tokenizer.config.model_type != "char")
        raise DataError(
            f"The vocabulary cannot hold {named}{', …' if len(lost) > 8 else ''}, which occurs in document "
            f"{characters[lost[0]]} of the train split; remove it from the corpus, or choose "
            f"{bytes_too}tokenizer.kind='gpt2'."
        )


def given_tokenizer(config: TokenizerConfig, normalize: str = "none") -> Tokenizer:
    """The vocabulary of `config.file`, a SentencePiece model or a tokenizer.json.

    `normalize` names the normalisation that texts go through before the vocabulary's own.

    Raises:
      ConfigError: there is no such file.
      DataError: it is damaged, or does not say which token ends a text, or says one that it does not have.
    """
    path = as_path(config.file)
    require(
        path.is_file(),
        f"tokenizer.file: {path} does not exist; give a SentencePiece .model or a tokenizer.json.",
    )
    content = path.read_bytes()
    if path.suffix == ".model":
        try:
            pieces = SentencePieceTokenizer(config, normalize, content)
        except RuntimeError:
            raise DataError(
                f"tokenizer.file: {path} is not a SentencePiece model (Llama 3's tokenizer.model is none), "
                "or is damaged; give one, or a tokenizer.json."
            ) from None
        if pieces.eos_id < 0:
            raise DataError(
                f"tokenizer.file: {path} has no token that begins or ends a text; train it with eos_id=…."
            )
        return pieces
    try:
        found = read_tokenizer(content)
    except Exception as error:  # `tokenizers` raises no narrower class
        # A run's tokenizer.json only describes one of these.
        beside = (path.with_name(name) for name in (MODEL_FILE, HUB_FILE))
        reasons = (f"give {model} beside it" for model in beside if model.is_file())
        reason = next(reasons, str(error))
        raise DataError(f"tokenizer.file: {path} cannot be read ({reason}).") from None
    named = special_names(path.parent / NAMES_FILE, DataError)
    both = ends(*(_special_id(found, named, which) for which in ("bos", "eos")))
    if both is None:
        raise DataError(
            f"tokenizer.file: {path} does not say which token ends a text; put {NAMES_FILE} with its "
            "eos_token beside it."
        )
    rows = max(found.get_vocab().values()) + 1
    return HubTokenizer(config, normalize, content, Special(rows, *both))


class SpecialNames(NamedTuple):
    """What a tokenizer_config.json calls the special tokens."""

    path: Path
    content: Mapping[str, Any]  # empty if there is no such file
    error: type[UserError]

    def token(self, which: str) -> str | None:
        """The token that it names as "bos", "eos" or "mask"; None if it names none.

        Raises:
          UserError: it gives something else than a token.
        """
        given = self.content.get(f"{which}_token")
        name = given.get("content", given) if isinstance(given, dict) else given
        if name is None or isinstance(name, str):
            return name or None  # some files have "" where there is no such token
        raise self.error(
            f"{self.path}: {which}_token must be a token's text, an object with its content, or null, not "
            f"{given!r:.60}."
        )

    def number(self, tokenizer: tokenizers.Tokenizer, which: str) -> int | None:
        """The id of the token that it names; None if it names none.

        Raises:
          UserError: it names none of the vocabulary's tokens.
        """
        name = self.token(which)
        found = None if name is None else tokenizer.token_to_id(name)
        if name is not None and found is None:
            raise self.error(
                f"{self.path}: {which}_token is {name!r}, which the vocabulary does not have; name one of "
                "its tokens, or remove the line."
            )
        return found


def special_names(path: Path, error: type[UserError]) -> SpecialNames:
    """What a tokenizer_config.json says, if there is one; `error` if it is not an object."""
    return SpecialNames(path, read_json(path, error) if path.is_file() else {}, error)


def _special_id(tokenizer: tokenizers.Tokenizer, named: SpecialNames, which: str) -> int | None:
    found = named.number(tokenizer, which)
    added = tokenizer.get_added_tokens_decoder()
    special = {token.content: number for number, token in added.items() if token.special}
    usual = (special[name] for name in _USUAL[which] if name in special)
    return next(usual, None) if found is None else found
