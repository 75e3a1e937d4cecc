"""Tokenizers of GGUF files. Oracles: BPE by hand, and SentencePiece."""

import io
import json

import numpy as np
import pytest
import sentencepiece

import sdtt_jax
from sdtt_jax.errors import CheckpointError
from tests import plain_llama
from tests.interchange.test_gguf import (
    EMBED,
    IDS,
    LAYERS,
    MERGES,
    MLP,
    PLAIN,
    TOKENS,
    added,
    weights,
    write,
)


def test_text_is_read_by_the_tokens_and_merges_of_the_file(tmp_path):
    """Oracle: BPE by hand. Each digit is a token, special tokens in a text are kept, ids are positions."""
    tokenizer = sdtt_jax.load(write(tmp_path / "model.gguf", weights())).tokenizer
    pieces = [TOKENS[i] for i in tokenizer.encode("<|im_start|>then 42 in the é")]
    assert pieces == [
        "<|im_start|>", "the", "n", "Ġ", "4", "2", "Ġin", "Ġthe", "Ġ", "Ã", "©",
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer.encode("then 42 in the é\n")) == "then 42 in the é\n"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, len(TOKENS))
    assert len(tokenizer.encode("")) == 0


def test_llama_3s_text_is_cut_as_its_own_tokenizer_cuts_it(tmp_path):
    """Oracle: by hand. Digits go in threes, a word that is a token stays whole, a line break joins the
    punctuation before it.
    """
    tokens = [*TOKENS, "12", "123", "45", "Ġthin", ".Ċ"]

    def llama_3(writer):
        added("tokenizer.ggml.pre", "llama-bpe")(writer)
        added("tokenizer.ggml.tokens", tokens)(writer)
        added("tokenizer.ggml.token_type", [3] * 3 + [1] * (len(tokens) - 3))(writer)
        added("tokenizer.ggml.merges", [*MERGES, "1 2", "4 5", "12 3"])(writer)

    numbers = weights()
    numbers["embed"] = np.concatenate([numbers["embed"], numbers["embed"][:5]])
    tokenizer = sdtt_jax.load(write(tmp_path / "m.gguf", numbers, change=llama_3)).tokenizer
    pieces = [tokens[i] for i in tokenizer.encode("in 12345 thin.\n")]
    # Without merges for them, "Ġthin" and ".Ċ" are tokens all the same.
    assert pieces == ["i", "n", "Ġ", "123", "45", "Ġthin", ".Ċ"]
    assert tokenizer.decode(tokenizer.encode("in 12345 thin.\n")) == "in 12345 thin.\n"


def test_llama_2s_text_is_read_as_sentencepiece_reads_it(tmp_path):
    """Oracle: SentencePiece itself, on a vocabulary that it learned; what no piece spells becomes bytes."""
    text = "the thin thing in the tin, and then 77 things in a din. so it is, and so be it!"
    learned = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 20),
        model_writer=learned,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=learned.getvalue())
    ids = range(theirs.vocab_size())
    kinds = [
        3 if theirs.is_control(i) else 2 if theirs.is_unknown(i) else 6 if theirs.is_byte(i) else 1
        for i in ids
    ]
    fields = {
        "model": "llama",
        "pre": None,
        "merges": None,
        "tokens": [theirs.id_to_piece(i) for i in ids],
        "scores": [theirs.get_score(i) for i in ids],
        "token_type": kinds,
    }

    def llama_2(writer):
        for name, value in fields.items():
            added(f"tokenizer.ggml.{name}", value)(writer)

    numbers = plain_llama.random_weights(
        3, PLAIN, layers=LAYERS, embed=EMBED, mlp=MLP, rows=len(ids), tied=True
    )
    path = write(tmp_path / "m.gguf", numbers, change=llama_2)
    tokenizer = sdtt_jax.load(path).tokenizer
    for words in ("the tin", "so  then,\nthings é 語!", " a", "things in things", "7772"):
        assert tokenizer.encode(words).tolist() == theirs.encode(words), words
        assert tokenizer.decode(tokenizer.encode(words)) == words
    for words in ("the tin", "so  then,\nthings!", "things in things"):
        ids = tokenizer.encode(words)
        assert "".join(tokenizer.pieces(ids)) == words
        # Behind MASK a text goes on, as `decode` reads it.
        with_mask = [*ids, tokenizer.mask_id, *ids]
        assert "".join(tokenizer.pieces(with_mask)) == tokenizer.decode(with_mask)
    fields["scores"] = fields["scores"][:-1]
    with pytest.raises(CheckpointError, match="its tokenizer cannot be read"):
        sdtt_jax.load(write(tmp_path / "short.gguf", numbers, change=llama_2))


def test_another_tokenizer_leaves_a_model_of_tokens(tmp_path):
    def other(writer):
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "qwen2"

    model = sdtt_jax.load(write(tmp_path / "model.gguf", weights(), change=other))
    assert model.tokenizer is None
    assert model.logits(IDS).shape == (2, 7, len(TOKENS))
    known = sdtt_jax.load(write(tmp_path / "known.gguf", weights())).tokenizer
    (tmp_path / "tokenizer.json").write_bytes(known.model)
    names = {"bos_token": TOKENS[1], "eos_token": TOKENS[2]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    beside = sdtt_jax.load(tmp_path / "model.gguf").tokenizer
    assert beside.digest == known.digest


def test_a_denoiser_by_the_users_word_has_its_tokenizers_mask(tmp_path):
    """Oracle: the file's ids, of which those after MASK are smaller by one here."""
    path = write(tmp_path / "model.gguf", weights())
    causal = sdtt_jax.load(path)
    mask = 5
    model = sdtt_jax.load(path, causal=False, mask_id=mask, shift=False)
    text = "in the 7 then"
    there, here = (m.tokenizer.encode(text) for m in (causal, model))
    assert mask not in there
    assert here.tolist() == [token - (token > mask) for token in there]
    assert model.tokenizer.vocab_size == model.config.vocab_size
    assert model.tokenizer.decode(here) == text
