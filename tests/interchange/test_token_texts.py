"""Texts of tokens for a program without their vocabulary. Oracle: the tokenizer itself."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sdtt_jax.data import Gpt2Tokenizer, TokenizerConfig
from sdtt_jax.data.tokenizer import HubTokenizer, SentencePieceTokenizer, Special
from sdtt_jax.interchange.token_texts import read_tokens, token_texts

TEXT = "He said “no”. Café 日本 👍"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def gpt2():
    return Gpt2Tokenizer(TokenizerConfig(kind="gpt2"), "none")


def hub(words, mask_row=None, decoder=None, padding=0):
    """As Llama's: pieces with "▁" for the space, and bytes for the characters that it lacks."""
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<mask>", *words])}
    made = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoder or decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = Special(len(vocab) + padding, 0, 1, mask_row)
    return HubTokenizer(TokenizerConfig(kind="hub"), "none", made.to_str().encode(), special)


def llama():
    return hub([*BYTES, "▁", *"Hesaidno.Cf"], mask_row=2)


def padded():
    """The last rows of its embedding are no tokens, and random ones stand between bytes of a character."""
    return hub([*BYTES, "▁", *"Hesaidno.Cf"], mask_row=2, padding=32)


def words():
    """Tokens that are called like bytes, in a vocabulary that does not fall back to them."""
    return hub(["<0xE2>", "▁", "a", "�"], decoder=decoders.Replace("▁", " "))


def byte_level():
    """GPT-2's bytes, in a tokenizer.json whose MASK is not the last token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<mask>", *alphabet, "Ġâ", "Ģľ"])}
    made = tokenizers.Tokenizer(models.BPE(vocab, [("Ġ", "â"), ("Ģ", "ľ")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = Special(len(vocab), 0, 1, 2)
    return HubTokenizer(TokenizerConfig(kind="hub"), "none", made.to_str().encode(), special)


def end_of_word():
    """As GPT-1's: "</w>" ends a word, and stands for the space behind it."""
    vocab = {
        token: i for i, token in enumerate(["<s>", "</s>", "a</w>", *"Hesaidno", "o</w>", "d</w>"])
    }
    made = tokenizers.Tokenizer(models.BPE(vocab, [], end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.BPEDecoder("</w>")
    special = Special(len(vocab), 0, 1, None)
    return HubTokenizer(TokenizerConfig(kind="hub"), "none", made.to_str().encode(), special)


def pieces():
    """SentencePiece's, which falls back to bytes and strips the space in front."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["he said no to him", "and he said so"]),
        model_writer=model,
        vocab_size=280,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=9,
    )
    return SentencePieceTokenizer(TokenizerConfig(), "none", model.getvalue())


@pytest.mark.parametrize("make", [gpt2, llama, padded, words, byte_level, end_of_word, pieces])
def test_they_read_as_the_tokenizer_decodes(make):
    """Of characters of several tokens, of two texts in a row, and of bytes that are no text."""
    tokenizer = make()
    info = json.loads(json.dumps(token_texts(tokenizer)))
    assert len(info["pieces"]) == tokenizer.vocab_size
    rng, ends, mask = (
        np.random.default_rng(0),
        [tokenizer.eos_id, tokenizer.bos_id],
        tokenizer.mask_id,
    )
    ids = tokenizer.encode(TEXT)
    likely = np.array([*ids, *ends, *map(int, info["bytes"]), mask])
    rows = [[*ids], [*ends, *ids, *ends, *ids, mask, mask, *ids], [], [*ends]]
    rows += [rng.choice(likely, 12) for _ in range(300)]
    rows += [rng.integers(0, tokenizer.vocab_size + 1, 12) for _ in range(300)]
    # A space that is spelt in bytes, where a text begins.
    spaces = [int(token) for token, spelt in info["bytes"].items() if spelt == "20"]
    rows += [[ends[0], space, *row] for space in spaces for row in rows[-40:]]
    for row in rows:
        assert read_tokens(info, row) == tokenizer.decode(row), list(row)


def test_a_space_follows_a_token_that_ends_a_word():
    tokenizer = end_of_word()
    ids = tokenizer.encode("so a andd noo")
    assert tokenizer.decode(ids) == "so a andd noo"
    assert "".join(tokenizer.pieces(ids)) == "so a andd noo"
    assert tokenizer.decode(ids[:2], behind=True) == "so"
    o, mask = int(ids[1]), tokenizer.mask_id
    assert tokenizer.pieces([o, o, mask, o]) == ["o ", "o", "▒", "o"]
