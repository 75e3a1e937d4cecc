"""From raw text to batches of tokens: corpora, tokenizers, packing, shards, and batches by seed and step.

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
