"""The config of a run's data: which text, how it is cut, which vocabulary."""

import contextlib
import dataclasses
import posixpath

from sdtt_jax.config import at_least, check_types, one_of, positive, require, whole, within
from sdtt_jax.data.detokenize import DETOKENIZERS
from sdtt_jax.data.normalize import NORMALIZERS
from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.sequence_kinds import KINDS, Sequences
from sdtt_jax.paths import absolute


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """From text to sequences of equal length.

    Attributes:
      corpus: name of a corpus in `sdtt_jax.data.CORPORA` (`world_english_bible`, `openwebtext`, …),
        or path of a .txt, .jsonl or .parquet file, or of a folder of such files (read in the order
        of their paths).
      text_field: the field of JSONL lines, or the column of Parquet, that holds the text in the user's
        own files.
      detokenize: undoes a benchmark's tokenisation: `none` (for a named corpus, its own detokenizer),
        `ptb`, `wikitext`, `lm1b`, `lambada` or `scientific_papers`.
      normalize: `none` or `text8` (lowercase; everything outside a-z becomes one space).
      length: tokens in a sequence, BOS and EOS included.
      wrap: True makes sequences `[BOS] chunk [EOS]` as MDLM does, False contiguous chunks.
      validation_fraction: share of the documents (or of every document's characters where the
        corpus has fewer than 20) that is held out; a named corpus that has a validation or test
        split holds out that split instead.
      num_shards: ArrayRecord files per split.
      deduplicate: leave out of the train split every document whose cleaned text, by its 64-bit digest, is in
        the validation split or occurred earlier. Among ten million documents the chance that even one is
        lost by a coincidence of digests is 3 in a million.
      skip_bad: how many rows and files that cannot be read, texts that spell MASK (or, `padded`, go on after
        an EOS), and pairs that are longer than `length` or whose own BOS or EOS would move the end of the
        prompt, are skipped, counted by kind and named in the manifest; one more stops the preparation. 0
        stops it at the first.
      sequences: what a sequence holds. `packed`: a piece of the stream of all documents, whose positions all
        see each other, as in the papers. `documents`: the same, with attention confined to each document.
        `padded`: one document and padding, which is neither seen nor masked nor counted. `prompted`: the same
        with a prompt at its beginning, which is seen, but neither masked nor counted; `text_field` then names
        two fields of JSON lines, `prompt>completion`.
      mixture: further prepared data folders to train on, each with its weight, `FOLDER=0.5`; `corpus` has
        weight 1. All have the same vocabulary, length, `sequences` and `wrap`; the held-out text comes only
        from `corpus`.
    """

    corpus: str = "world_english_bible"
    text_field: str = "text"
    detokenize: str = "none"
    normalize: str = "none"
    length: int = 128
    wrap: bool = False
    validation_fraction: float = 0.05
    num_shards: int = 1
    deduplicate: bool = False
    skip_bad: int = 0
    sequences: str = "packed"
    mixture: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        require(self.corpus != "", "corpus must be a corpus name or a path, not ''.")
        require(
            self.text_field != "", "text_field must name the field that holds the text, not ''."
        )
        one_of(self, detokenize=DETOKENIZERS, normalize=NORMALIZERS, sequences=KINDS)
        whole(3 if self.wrap else 2, self, "length")
        within("(0, 1)", self, "validation_fraction")
        within("[1, 99999]", self, "num_shards")
        at_least(0, self, "skip_bad")
        Sequences(self.sequences, wrap=self.wrap)
        self.mixed()
        prompted = self.sequences == "prompted"
        names = self.text_field.split(">")
        require(
            len(names) == 1 + prompted and all(name.strip() for name in names),
            "sequences='prompted' and a text_field of two names, 'prompt>completion', go together; it is not "
            f"{self.text_field!r}.",
        )
        require(
            not prompted or self.detokenize == self.normalize == "none",
            "sequences='prompted' takes prompts as they are; set detokenize and normalize to 'none'.",
        )

    def mixed(self) -> dict[str, float]:
        """The folders of `mixture`, each named once, and their weights, all above 0."""
        found: dict[str, float] = {}
        known = set()
        for item in self.mixture:
            folder, _, weight = item.rpartition("=")
            with contextlib.suppress(ValueError):
                found[folder] = float(weight)
            require(
                bool(folder) and 0 < found.get(folder, 0) < float("inf"),
                f"mixture={item!r} must be a folder and a weight above 0, as in FOLDER=0.5.",
            )
            positive(**{f"the weight in mixture={item!r}": found[folder]})
            path = _spelt_out(folder)
            require(
                path not in known,
                f"mixture names {folder} twice; add its weights up, and name it once.",
            )
            known.add(path)
        return found


def _spelt_out(folder: str) -> str:
    """A folder's path from the root, by which two spellings of it are known to be the same."""
    with contextlib.suppress(
        ConfigError
    ):  # the config of another machine: no such user, no such library
        folder = str(absolute(folder))
    return posixpath.normpath(folder)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Which vocabulary turns text into ids.

    Attributes:
      kind: `sentencepiece` (trained on the train split), `gpt2` (GPT-2's byte-level BPE), `file` (read from
        `file`) or `hub` (a published model's own); the fields below `file` are only for `sentencepiece`.
      file: path of an existing vocabulary, a SentencePiece `.model` or a `tokenizer.json`; that file, or a
        tokenizer_config.json next to it, says which token ends a text.
      model_type: SentencePiece model: `unigram`, `bpe` or `char`.
      vocab_size: number of ids, including the specials unk, BOS and EOS but not MASK. For `char`
        it is an upper bound, since there are only as many pieces as the text has characters.
      byte_fallback: spell characters that the train split lacks as bytes (256 more ids) instead
        of mapping them to unk.
      max_sentences: the vocabulary is learned from one to two times this many segments of some 500
        characters, evenly spaced over the train split; more of them cost time and change little.
    """

    kind: str = "sentencepiece"
    file: str = ""
    model_type: str = "unigram"
    vocab_size: int = 512
    byte_fallback: bool = False
    max_sentences: int = 10_000

    def __post_init__(self) -> None:
        check_types(self)
        kinds, model_types = ("sentencepiece", "gpt2", "hub", "file"), ("unigram", "bpe", "char")
        one_of(self, kind=kinds, model_type=model_types)
        require(
            (self.kind == "file") == (self.file != ""),
            f"file={self.file!r} and kind={self.kind!r}: kind='file' and a vocabulary's path go together.",
        )
        require(
            self.file == "" or self.file.endswith((".model", ".json")),
            f"file={self.file!r} must be a SentencePiece .model or a tokenizer.json.",
        )
        within("[4, 65535]", self, "vocab_size")
        at_least(1, self, "max_sentences")
        require(
            not (self.byte_fallback and self.model_type == "char"),
            "byte_fallback cannot be used with model_type='char'; choose 'unigram' or 'bpe'.",
        )
