"""Tokenizers that put a space before each text, as Llama 2's and SentencePiece's usual models do."""

import functools
import io
from collections.abc import Sequence

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sdtt_jax.data import SentencePieceTokenizer, Tokenizer, TokenizerConfig
from sdtt_jax.data.tokenizer import HubTokenizer, Special

TEXT = "the thin thing in the tin, and then things in a din"
KINDS = ["sentencepiece", "prepend", "metaspace"]


@functools.cache
def spacing(kind: str, denoiser: bool = False) -> Tokenizer:
    """A tokenizer of one of `KINDS`, all of one vocabulary; a denoiser's has MASK behind it."""
    processor, model = _learned()
    config = TokenizerConfig(kind="hub")
    if kind == "sentencepiece":
        return SentencePieceTokenizer(config, "none", model)
    made = _with_merges([processor.id_to_piece(i) for i in range(processor.vocab_size())])
    if kind == "prepend":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
    size = processor.vocab_size()
    special = Special(size + 1, 1, 2, size) if denoiser else Special(size, 1, 2)
    return HubTokenizer(config, "none", made.to_str().encode(), special)


@functools.cache
def _learned() -> tuple[sentencepiece.SentencePieceProcessor, bytes]:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20),
        model_writer=written,
        model_type="bpe",
        vocab_size=48,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue()), written.getvalue()


def _with_merges(pieces: Sequence[str]) -> tokenizers.Tokenizer:
    # SentencePiece numbers the pieces in the order of the merges that make them.
    known = set(pieces[3:])
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces[3:]
        for at in range(1, len(piece))
        if {piece[:at], piece[at:]} <= known
    ]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    made.add_special_tokens(["<s>", "</s>"])
    return made
