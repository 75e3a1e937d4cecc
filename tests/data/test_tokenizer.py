import functools
import hashlib
import importlib.resources
import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdtt_jax.data import TokenizerConfig, load_tokenizer, train_tokenizer
from sdtt_jax.data.tokenizer import MASK_PIECE, MODEL_FILE, save_tokenizer
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.formats import write_json

ODD = " two  spaces\ttab\nline\n\n x\rcr\u00a0hard\u3000wide é日本語 <s> </s> <unk> ends "


@pytest.fixture(scope="module", params=["unigram", "bpe", "char"])
def sentencepiece(request, chapters):
    config = TokenizerConfig(model_type=request.param, vocab_size=200, max_sentences=200)
    return train_tokenizer(config, [*chapters, ODD])


@pytest.fixture(scope="module")
def gpt2():
    return train_tokenizer(TokenizerConfig(kind="gpt2"), [])


def test_text_round_trips_with_its_whitespace(sentencepiece, chapters):
    for text in [ODD, ODD.strip(), *chapters[:3]]:
        ids = sentencepiece.encode(text)
        assert ids.dtype == np.int32
        assert sentencepiece.decode(ids) == text
        assert "".join(sentencepiece.pieces(ids)) == text


def test_specials_never_come_from_text(sentencepiece):
    ids = sentencepiece.encode(ODD)
    assert (sentencepiece.bos_id, sentencepiece.eos_id) == (1, 2)
    assert ids.min() > 2
    assert ids.max() < sentencepiece.vocab_size == sentencepiece.mask_id


def test_a_character_that_training_did_not_see_is_visible(sentencepiece):
    assert sentencepiece.decode(sentencepiece.encode("aжb")) == "a⁇b"


def test_bytes_spell_what_training_did_not_see(chapters):
    config = TokenizerConfig(model_type="bpe", vocab_size=400, byte_fallback=True)
    tokenizer = train_tokenizer(config, chapters)
    assert tokenizer.decode(tokenizer.encode("aжb🎉")) == "aжb🎉"


def test_the_same_text_gives_the_same_model(chapters):
    config = TokenizerConfig(vocab_size=100, max_sentences=50)
    first, second = (train_tokenizer(config, chapters) for _ in range(2))
    assert first.digest == second.digest


def test_a_sample_of_sentences_still_covers_every_character(chapters):
    config = TokenizerConfig(model_type="char", vocab_size=200, max_sentences=5)
    tokenizer = train_tokenizer(config, [*chapters, "rare: ǂ"])
    assert tokenizer.decode(tokenizer.encode("ǂ")) == "ǂ"


# What SentencePiece drops from training or skips whole sentences for, and characters that look like it.
RESERVED = '\r\n\t\x1f▅\0\ufeff\ufffd\u0301\u2028\x85\x1c⁇\ue000,"\U0001f600'


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_no_character_of_the_train_split_is_unknown(model_type):
    """Wherever it is in a text; nothing beside it is lost, and the error names the size of the alphabet."""
    reserved = RESERVED.replace("\0", "")
    texts = [f"{c}only{n} {c} here{c}\n{c}" for n, c in enumerate(reserved)]
    smallest = 3 + len(set("".join(texts)))
    config = TokenizerConfig(model_type=model_type, vocab_size=smallest)
    tokenizer = train_tokenizer(config, texts)
    assert tokenizer.vocab_size == smallest
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_id not in ids
        assert tokenizer.decode(ids) == text
    with pytest.raises(ConfigError, match=f"too small .* at least {smallest}"):
        train_tokenizer(TokenizerConfig(model_type=model_type, vocab_size=smallest - 1), texts)


def test_what_no_piece_can_spell_is_named_with_its_document():
    texts = ["the first", "the second\0 the\0"]
    with pytest.raises(DataError, match=r"cannot hold U\+0000, .* document 2 of the train split"):
        train_tokenizer(TokenizerConfig(model_type="char"), texts)
    config = TokenizerConfig(model_type="bpe", vocab_size=3 + 256 + 12, byte_fallback=True)
    tokenizer = train_tokenizer(config, texts)
    assert tokenizer.decode(tokenizer.encode(texts[1])) == texts[1]


def test_more_rare_characters_than_a_training_sentence_holds():
    """SentencePiece skips sentences of more than 4192 bytes."""
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    config = TokenizerConfig(model_type="char", vocab_size=4000, max_sentences=1)
    tokenizer = train_tokenizer(config, ["a b c", *["a " * 300] * 9, rare, *["b " * 300] * 9])
    assert tokenizer.unk_id not in tokenizer.encode(rare)


def test_half_of_a_surrogate_pair_is_no_text(sentencepiece, gpt2):
    for tokenizer in (sentencepiece, gpt2):
        with pytest.raises(DataError, match=r"'a\\ud800b' holds half of a surrogate pair"):
            tokenizer.encode("a\ud800b")
        with pytest.raises(ConfigError, match="half of a surrogate pair"):
            tokenizer.encode_part("a\udcffb")
    with pytest.raises(DataError, match="half of a surrogate pair"):
        train_tokenizer(TokenizerConfig(), ["a", "b\ud83d"])


def test_a_part_of_which_nothing_is_left_is_refused(sentencepiece, gpt2):
    text8 = train_tokenizer(TokenizerConfig(model_type="char"), ["a b"], "text8")
    for text in ("1984", "[ 3 ]", "жж", "é", " 7 "):
        with pytest.raises(ConfigError, match=r"holds nothing .* after normalize='text8'"):
            text8.encode_part(text)
    for text in ("жж", "▁", " ж\n"):
        with pytest.raises(ConfigError, match="holds nothing that the vocabulary knows;"):
            sentencepiece.encode_part(text)
    # A single space is kept, and a text may hold unknown characters beside known ones.
    assert [text8.decode(text8.encode_part(text)) for text in (" ", "", "A1ж ")] == [" ", "", "a "]
    assert gpt2.encode_part("\ufffd\x00").size > 0


def test_a_part_is_read_as_from_a_file(sentencepiece, gpt2):
    """Line ends and byte-order marks of systems are in no file that is read; encoding a text keeps them."""
    for tokenizer in (sentencepiece, gpt2):
        assert tokenizer.decode(tokenizer.encode_part("\ufeffa\r\nb\rc")) == "a\nb\nc"
    assert gpt2.decode(gpt2.encode("a\r\nb")) == "a\r\nb"


def test_characters_of_text8_need_27_pieces_and_three_specials():
    config = TokenizerConfig(model_type="char", vocab_size=512)
    letters = "abcdefghijklmnopqrstuvwxyz "
    tokenizer = train_tokenizer(config, [letters], normalize="text8")
    assert tokenizer.vocab_size == 30
    assert tokenizer.decode(tokenizer.encode("It's 7 O'Clock!")) == "it s o clock"


@pytest.mark.parametrize(
    ("text", "read"),
    [("and god ", "and god "), (" the", " the"), (" ", " "), ("", ""), ("Amen. ", "amen ")],
)
def test_a_part_of_a_text_keeps_the_spaces_at_its_ends(text, read):
    """A whole document loses them: text8 has no space at either end."""
    config = TokenizerConfig(model_type="char", vocab_size=64)
    tokenizer = train_tokenizer(
        config, ["the quick brown fox jumps over a lazy dog amen and god"], "text8"
    )
    assert tokenizer.decode(tokenizer.encode_part(text)) == read
    assert tokenizer.decode(tokenizer.encode(text)) == read.strip()


def test_mask_and_ids_out_of_range_are_shown_or_left_out(sentencepiece):
    the, end = sentencepiece.encode("a"), sentencepiece.encode("b")
    ids = [*the, sentencepiece.mask_id, 10**6, -1, *end]
    assert sentencepiece.decode(ids) == "a" + 3 * MASK_PIECE + "b"
    assert sentencepiece.decode(ids, mask="") == "ab"
    assert sentencepiece.pieces(ids) == ["a", *3 * [MASK_PIECE], "b"]


def test_ends_of_texts_separate_and_vanish_at_the_edges(sentencepiece):
    bos, eos = sentencepiece.bos_id, sentencepiece.eos_id
    a, b = sentencepiece.encode("a"), sentencepiece.encode("b")
    assert sentencepiece.decode([bos, *a, eos, bos, *b, eos]) == "a\nb"
    assert sentencepiece.decode([bos, *a, eos, *b], separator=" | ") == "a | b"
    assert sentencepiece.decode([eos, eos]) == ""
    assert sentencepiece.decode([]) == ""


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_vocabulary_too_large_for_the_corpus_names_the_largest_that_works(model_type):
    texts = ["the cat sat on the mat and the dog sat on the log while the bird flew. " * 5]
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size 900 is too large") as error:
        train_tokenizer(TokenizerConfig(model_type=model_type, vocab_size=900), texts)
    largest = int(re.search(r"the largest that works is (\d+)", str(error.value))[1])
    config = TokenizerConfig(model_type=model_type, vocab_size=largest)
    assert train_tokenizer(config, texts).vocab_size == largest
    with pytest.raises(ConfigError):
        train_tokenizer(TokenizerConfig(model_type=model_type, vocab_size=largest + 1), texts)


def test_a_vocabulary_too_small_for_the_characters_names_the_least(chapters):
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size 20 is too small .* at least"):
        train_tokenizer(TokenizerConfig(vocab_size=20), chapters)
    # Oracle: the sizes that the config takes.
    for count, remedy in (
        (65532, "least 65535; set it to that"),
        (65533, "choose tokenizer.kind='gpt2'"),
    ):
        text = "".join(map(chr, range(2**16, 2**16 + count)))
        with pytest.raises(ConfigError, match=rf"{count} characters .*{remedy}"):
            train_tokenizer(TokenizerConfig(vocab_size=20), [text])
    TokenizerConfig(vocab_size=65535)
    with pytest.raises(ConfigError):
        TokenizerConfig(vocab_size=65536)


def test_no_text_no_vocabulary():
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(TokenizerConfig(), [])


def test_a_saved_tokenizer_is_the_same_again(sentencepiece, gpt2, tmp_path):
    for tokenizer in (sentencepiece, gpt2):
        save_tokenizer(tokenizer, tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert (loaded.config, loaded.digest) == (tokenizer.config, tokenizer.digest)
        np.testing.assert_array_equal(loaded.encode(ODD), tokenizer.encode(ODD))


def test_damage_to_a_saved_tokenizer_is_named(sentencepiece, tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    save_tokenizer(sentencepiece, tmp_path)
    model = tmp_path / MODEL_FILE
    content = model.read_bytes()
    model.write_bytes(content[:100])
    with pytest.raises(DataError, match=r"sentencepiece\.model is (damaged|not the model)"):
        load_tokenizer(tmp_path)
    model.unlink()
    with pytest.raises(DataError, match=r"sentencepiece\.model is missing"):
        load_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    for unknown in ("nope", None, []):
        write_json(tmp_path / "tokenizer.json", content | {"normalize": unknown})
        with pytest.raises(DataError, match=r"tokenizer\.json is damaged \(.*normalize|unhash"):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path)


# GPT-2's pattern (Radford et al. 2019, released encoder.py), with its letter and number classes
# written for Python's `re`: digits here are ASCII, as the texts below keep them.
_PATTERN = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


@functools.cache
def gpt2_bytes():
    """The bytes of each of GPT-2's tokens. It writes the 188 printable bytes of Latin-1 as themselves and the
    others as characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(0x100 + index): byte for index, byte in enumerate(others)}
    file = importlib.resources.files("sdtt_jax.data") / "gpt2_bpe" / "encoder.json"
    pieces = sorted(json.loads(file.read_text("utf-8")).items(), key=lambda item: item[1])
    return [bytes(byte_of[char] for char in piece) for piece, _ in pieces]


def test_gpt2_digest_and_pieces_are_those_of_the_bytes(gpt2):
    assert gpt2.digest == hashlib.sha256(b"\0".join(gpt2_bytes())).hexdigest()
    texts = [piece.decode("utf-8", errors="replace") for piece in gpt2_bytes()]
    assert gpt2.pieces(range(50256)) == texts[:-1]
    ids = np.random.default_rng(0).integers(0, 50256, 2000).tolist()
    joined = b"".join(gpt2_bytes()[token] for token in ids)
    assert gpt2.decode(ids) == joined.decode("utf-8", errors="replace")


def _bpe_by_definition(text):
    """Merges, word by word, the adjacent pair that comes first in vocab.bpe, until none is left.

    `gpt2_bytes` gives only the bytes of each id; ranks of merges follow from the ids, since GPT-2
    numbers its pieces in the order of the merges that make them, after the 256 bytes.
    """
    id_of = {piece: token for token, piece in enumerate(gpt2_bytes()[:-1])}
    ids = []
    for word in _PATTERN.findall(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            ranked = [
                (id_of[left + right], index)
                for index, (left, right) in enumerate(itertools.pairwise(parts))
                if left + right in id_of
            ]
            if not ranked:
                break
            best = min(ranked)[0]
            merged, index = [], 0
            while index < len(parts):
                pair = b"".join(parts[index : index + 2])
                if index + 1 < len(parts) and id_of.get(pair) == best:
                    merged.append(pair)
                    index += 2
                else:
                    merged.append(parts[index])
                    index += 1
            parts = merged
        ids += [id_of[part] for part in parts]
    return ids


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from(" \n'abcdeilmnorstuvw THE0189.,!?-_é日ж🎉"), max_size=60))
def test_gpt2_ids_are_those_of_the_algorithm_by_definition(gpt2, text):
    assert gpt2.encode(text).tolist() == _bpe_by_definition(text)


def test_gpt2_ids_of_real_text_are_those_of_the_algorithm_by_definition(gpt2, chapters):
    for text in chapters[:3]:
        assert gpt2.encode(text).tolist() == _bpe_by_definition(text)


def test_gpt2_published_ids(gpt2):
    # Oracle: ids that GPT-2's own documentation and model cards print.
    assert gpt2.encode("Hello, my dog is cute").tolist() == [15496, 11, 616, 3290, 318, 13779]
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert (gpt2.vocab_size, gpt2.mask_id) == (50257, 50257)
    assert gpt2.bos_id == gpt2.eos_id == 50256
    assert 50256 not in gpt2.encode("<|endoftext|>")


@settings(deadline=None)
@given(st.text())
def test_gpt2_round_trips_any_text(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text


def test_gpt2_pieces_are_as_many_as_ids(gpt2):
    ids = gpt2.encode("café 🎉!")
    assert len(gpt2.pieces(ids)) == len(ids)
    assert gpt2.pieces([50256, 50257, 15496]) == ["", MASK_PIECE, "Hello"]


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (np.zeros((2, 3), np.int32), r"ids must be whole numbers \[length\], not int32\[2, 3\]"),
        (np.float32([1.5]), r"not float32\[1\]"),
        ("text", r"not <U1\[4\]"),
        (None, r"not object\[\]"),
        (5, r"not int64\[\]"),
        ([[1], [2, 3]], "rows of other lengths"),
    ],
    ids=["batch", "floats", "text", "nothing", "number", "ragged"],
)
def test_what_is_not_the_ids_of_one_text_is_named(sentencepiece, ids, named):
    for read in (sentencepiece.decode, sentencepiece.pieces):
        with pytest.raises(ConfigError, match=named):
            read(ids)
    with pytest.raises(ConfigError, match="encode_batch takes a list of texts"):
        sentencepiece.encode_batch("text")


def test_ids_may_lie_in_any_range(sentencepiece):
    """Also beyond 64 bits, as in a list that another program wrote."""
    for beyond in (2**63, 2**64 - 1, 10**30, -(2**70)):
        assert sentencepiece.pieces([beyond, sentencepiece.bos_id]) == [MASK_PIECE, ""]


@pytest.mark.parametrize("text", [b"in the", None, 5, ["in"]], ids=str)
def test_what_is_no_text_is_not_encoded(sentencepiece, text):
    """The text of bytes would be what Python calls them."""
    for encode in (
        sentencepiece.encode,
        sentencepiece.encode_part,
        sentencepiece.encode_piece,
        lambda text: sentencepiece.encode_batch([text]),
    ):
        with pytest.raises(ConfigError, match=r"must be a str, not"):
            encode(text)


@pytest.mark.parametrize("texts", [b"in the", None, 5], ids=str)
def test_what_holds_no_texts_is_not_encoded(sentencepiece, texts):
    with pytest.raises(ConfigError, match="encode_batch takes a list of texts, not"):
        sentencepiece.encode_batch(texts)


def test_ids_may_be_any_iterable(sentencepiece):
    ids = sentencepiece.encode("in the beginning")
    for same in (ids.tolist(), iter(ids), tuple(ids), ids.astype(np.uint8)):
        assert sentencepiece.decode(same) == "in the beginning"
    assert sentencepiece.decode([]) == ""
