"""GPT-2's byte-level BPE, from the two files in `gpt2_bpe/`."""

import functools
import importlib.resources
import json

import tokenizers

# SHA-256 of the bytes of the tokens, in the order of their ids and with a zero byte between them.
DIGEST = "80fc72dae333882a37b202858853685b0232e9dd624396c1024fb93536a62a83"


@functools.cache
def byte_level_bpe() -> tokenizers.Tokenizer:
    """The tokenizer, made once; `<|endoftext|>` is its last token, and no text becomes it."""
    folder = importlib.resources.files("sdtt_jax.data") / "gpt2_bpe"
    vocabulary = json.loads((folder / "encoder.json").read_text("utf-8"))
    # The first line says the version.
    lines = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    return bpe
