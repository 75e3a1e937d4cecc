"""From raw text to batches of tokens: corpora, tokenizers, packing, shards, and batches by seed and step.

A text goes through the modules in this order; `preparation` runs all of them up to the shards:

* `corpora` names it: `files` at a path, `published` data sets, `embedded` texts; `opening` opens the files.
* `reading` turns files into rows, and `detokenize` and `normalize` turn a row into a document.
* `ingest` stores documents, in `tasks` that `engines` run, and `division` decides the split of each.
* `tokenizer` turns text into ids, on `tokenizer_base` and `tokenizer_json`; `making` and `vocabulary` learn a
  vocabulary, or read the user's.
* `packing` turns ids into sequences, and `shards` and `builders` write them; `records` reads the folder.
* `loader` makes batches, and `inspection` examines the prepared data.

It may use `ops`, `parallel` and the modules at the top of the package.
"""

from sdtt_jax.data.config import DataConfig, TokenizerConfig
from sdtt_jax.data.corpora import CORPORA, Corpus
from sdtt_jax.data.detokenize import DETOKENIZERS
from sdtt_jax.data.loader import Split, open_split
from sdtt_jax.data.making import train_tokenizer
from sdtt_jax.data.normalize import NORMALIZERS
from sdtt_jax.data.preparation import prepare
from sdtt_jax.data.shards import DataInfo
from sdtt_jax.data.tokenizer import (
    Gpt2Tokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)

__all__ = [
    "CORPORA",
    "DETOKENIZERS",
    "NORMALIZERS",
    "Corpus",
    "DataConfig",
    "DataInfo",
    "Gpt2Tokenizer",
    "SentencePieceTokenizer",
    "Split",
    "Tokenizer",
    "TokenizerConfig",
    "load_tokenizer",
    "open_split",
    "prepare",
    "train_tokenizer",
]
