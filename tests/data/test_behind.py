"""Texts that stand behind other text. Oracles: the whole text; tokenizers that put no space before a text."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.data.tokenizer import MASK_PIECE, HubTokenizer, Special
from tests.spaces import KINDS, TEXT, spacing

PARTS = ["", " ", "  a", "in", " in", "Ж", "жin", " ж", "in\n", "\nin", " , ", "tin and the "]


@pytest.mark.parametrize("kind", KINDS)
def test_two_parts_are_the_whole_text_wherever_it_is_cut(kind):
    tokenizer = spacing(kind)
    for at in range(1, len(TEXT)):
        first, second = tokenizer.encode(TEXT[:at]), tokenizer.encode(TEXT[at:], behind=True)
        assert first.dtype == second.dtype == np.int32
        assert tokenizer.decode([*first, *second]) == TEXT
        assert tokenizer.decode(first) + tokenizer.decode(second, behind=True) == TEXT
        np.testing.assert_array_equal(tokenizer.encode_piece(TEXT[at:], behind=True), second)
        np.testing.assert_array_equal(tokenizer.encode_part(TEXT[at:], behind=True), second)
    # It puts a space before a text, unless the text follows another one.
    alone, behind = tokenizer.encode("the"), tokenizer.encode("the", behind=True)
    assert not np.array_equal(alone, behind)
    # A word has its usual tokens.
    the = len(tokenizer.encode("the"))
    np.testing.assert_array_equal(
        tokenizer.encode(" thing", behind=True), tokenizer.encode("the thing")[the:]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", PARTS)
def test_what_the_vocabulary_lacks_is_read_behind_other_text_as_within_it(kind, part):
    tokenizer = spacing(kind)
    expected = tokenizer.decode(tokenizer.encode(f"a{part}"))[1:]
    assert tokenizer.decode(tokenizer.encode(part, behind=True), behind=True) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_behind_mask_a_text_goes_on_and_behind_eos_it_begins(kind):
    tokenizer = spacing(kind)
    ids = tokenizer.encode("the tin")
    rows = {
        (*ids, tokenizer.mask_id, *ids): f"the tin{MASK_PIECE} the tin",
        (tokenizer.mask_id, *ids): f"{MASK_PIECE} the tin",
        (*ids, tokenizer.eos_id, *ids): "the tin\nthe tin",
    }
    for row, text in rows.items():
        assert tokenizer.decode(row) == text
        assert "".join(tokenizer.pieces(row)) == text.replace("\n", "")
    assert tokenizer.decode([tokenizer.mask_id, *ids], mask="") == "the tin"
    assert tokenizer.decode([tokenizer.eos_id, *ids], behind=True) == "the tin"


@pytest.mark.parametrize("kind", ["gpt2", "char", "bpe", "byte-level"])
def test_for_other_tokenizers_nothing_depends_on_it(kind):
    if kind == "byte-level":
        made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(_bytes())}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        config = TokenizerConfig(kind="hub")
        tokenizer = HubTokenizer(config, "none", made.to_str().encode(), Special(256, 0, 0))
    elif kind == "gpt2":
        tokenizer = train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    else:
        config = TokenizerConfig(model_type=kind, vocab_size=30)
        tokenizer = train_tokenizer(config, [TEXT])
    for part in PARTS:
        ids = tokenizer.encode(part)
        np.testing.assert_array_equal(tokenizer.encode(part, behind=True), ids)
        assert tokenizer.decode(ids, behind=True) == tokenizer.decode(ids)
    # Also of bytes that are no characters.
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(0, tokenizer.vocab_size, 6)
        assert tokenizer.decode(ids, behind=True) == tokenizer.decode(ids)


def _bytes():
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_the_rest_of_a_word_is_no_word():
    """WordPiece writes it with a mark: "thin" is th, ##in."""
    words = ["[UNK]", "[SEP]", "a", "th", "in", "##in", "##g"]
    model = models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    config = TokenizerConfig(kind="hub")
    tokenizer = HubTokenizer(config, "none", made.to_str().encode(), Special(len(words), 1, 1))
    for part, pieces in (("ing", ["##in", "##g"]), (" in", ["in"]), ("ж", ["[UNK]"])):
        found = tokenizer.encode(part, behind=True)
        assert found.tolist() == [words.index(piece) for piece in pieces]
    assert tokenizer.decode([3, 5, 6]) == "thing"
    assert tokenizer.decode([5, 6], behind=True) == "ing"


def test_a_tokenizer_that_has_no_text_without_a_space_gives_the_same_ids():
    """Words only, of which neither a part nor an unknown one can be read."""
    made = tokenizers.Tokenizer(models.WordLevel({"the": 0, "tin": 1, "</s>": 2}))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = TokenizerConfig(kind="hub")
    tokenizer = HubTokenizer(config, "none", made.to_str().encode(), Special(3, 2, 2))
    for text in ("tin", " tin"):
        assert tokenizer.encode(text, behind=True).tolist() == [1]
    assert tokenizer.decode([1], behind=True) == " tin"
