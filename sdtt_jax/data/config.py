"""What determines the data of a run: which text, how it is cut, which vocabulary."""

import dataclasses

from sdtt_jax.config import require
from sdtt_jax.data.detokenize import DETOKENIZERS
from sdtt_jax.data.normalize import NORMALIZERS

TOKENIZER_KINDS = ("sentencepiece", "gpt2")
MODEL_TYPES = ("unigram", "bpe", "char")


def _require_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    require(value in choices, f"{field} must be one of {', '.join(choices)}, not {value!r}.")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """From text to sequences of equal length.

    Attributes:
      corpus: name of a corpus in `sdtt_jax.data.CORPORA` (`world_english_bible`, `openwebtext`, …),
        or path of a .txt, .jsonl or .parquet file, or of a folder of such files (read in the order
        of their paths).
      text_field: of the user's own files, the field of JSONL lines or the column of Parquet that
        holds the text.
      detokenize: undoes a benchmark's tokenisation: `none` (for a named corpus, its own), `ptb`,
        `wikitext`, `lm1b`, `lambada` or `scientific_papers`.
      normalize: `none` or `text8` (lowercase; everything outside a-z becomes one space).
      length: tokens in a sequence, BOS and EOS included.
      wrap: True makes sequences `[BOS] chunk [EOS]` as MDLM does, False contiguous chunks.
      validation_fraction: share of the documents (or of every document's characters where the
        corpus has fewer than 20) that is held out; a named corpus that has a validation or test
        split holds out that.
      num_shards: ArrayRecord files per split.
    """

    corpus: str = "world_english_bible"
    text_field: str = "text"
    detokenize: str = "none"
    normalize: str = "none"
    length: int = 128
    wrap: bool = False
    validation_fraction: float = 0.05
    num_shards: int = 1

    def __post_init__(self) -> None:
        require(
            isinstance(self.corpus, str) and bool(self.corpus),
            f"data.corpus must be a corpus name or a path, not {self.corpus!r}.",
        )
        require(
            isinstance(self.text_field, str) and bool(self.text_field),
            f"data.text_field must name the field that holds the text, not {self.text_field!r}.",
        )
        _require_choice("data.detokenize", self.detokenize, tuple(DETOKENIZERS))
        _require_choice("data.normalize", self.normalize, tuple(NORMALIZERS))
        require(isinstance(self.wrap, bool), f"data.wrap must be a bool, not {self.wrap!r}.")
        shortest = 3 if self.wrap else 2
        require(
            _is_int(self.length) and self.length >= shortest,
            f"data.length must be an integer of at least {shortest}, not {self.length!r}.",
        )
        require(
            isinstance(self.validation_fraction, float) and 0 < self.validation_fraction < 1,
            "data.validation_fraction must be a number between 0 and 1 (both excluded), not "
            f"{self.validation_fraction!r}.",
        )
        require(
            _is_int(self.num_shards) and 1 <= self.num_shards <= 99_999,
            f"data.num_shards must be an integer from 1 to 99999, not {self.num_shards!r}.",
        )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Which vocabulary turns text into ids.

    Attributes:
      kind: `sentencepiece` (trained on the train split) or `gpt2` (GPT-2's byte-level BPE; the
        other fields then do not apply).
      model_type: SentencePiece model: `unigram`, `bpe` or `char`.
      vocab_size: number of ids, the specials unk, BOS and EOS included and MASK not. For `char`
        it is an upper bound, since there are only as many pieces as the text has characters.
      byte_fallback: spell characters that the train split lacks as bytes (256 more ids) instead
        of mapping them to unk.
      max_sentences: the vocabulary is learned from one to two times as many segments of some 500
        characters, evenly spaced over the train split; more cost time and change little.
    """

    kind: str = "sentencepiece"
    model_type: str = "unigram"
    vocab_size: int = 512
    byte_fallback: bool = False
    max_sentences: int = 10_000

    def __post_init__(self) -> None:
        _require_choice("tokenizer.kind", self.kind, TOKENIZER_KINDS)
        _require_choice("tokenizer.model_type", self.model_type, MODEL_TYPES)
        require(
            _is_int(self.vocab_size) and 4 <= self.vocab_size <= 65_535,
            f"tokenizer.vocab_size must be an integer from 4 to 65535, not {self.vocab_size!r}.",
        )
        require(
            isinstance(self.byte_fallback, bool),
            f"tokenizer.byte_fallback must be a bool, not {self.byte_fallback!r}.",
        )
        require(
            not (self.byte_fallback and self.model_type == "char"),
            "tokenizer.byte_fallback cannot be used with tokenizer.model_type 'char'; "
            "choose 'unigram' or 'bpe'.",
        )
        require(
            _is_int(self.max_sentences) and self.max_sentences >= 1,
            "tokenizer.max_sentences must be an integer of at least 1, not "
            f"{self.max_sentences!r}.",
        )
