"""Oracles: the definition of packing, on the whole stream as a Python list; `encode` of a whole document."""

import functools
import string

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdtt_jax.data import packing
from sdtt_jax.data.config import TokenizerConfig
from sdtt_jax.data.making import train_tokenizer
from sdtt_jax.data.normalize import NORMALIZERS, PROMPT_END
from sdtt_jax.data.packing import encode_documents, pack, text_ends
from sdtt_jax.data.tokenizer import HubTokenizer, Special, Tokenizer
from sdtt_jax.errors import DataError
from sdtt_jax.ops.sequence_kinds import KINDS, Sequences
from sdtt_jax.ops.sequences import arrange

BOS, EOS = 1, 2
VOCABULARIES = ("gpt2", "unigram", "bpe", "char", "hub")


def _pack_by_definition(documents, length, wrap):
    stream = [token for document in documents for token in [*document, EOS]]
    size = length - 2 if wrap else length
    chunks = [stream[i : i + size] for i in range(0, len(stream) - size + 1, size)]
    return [[BOS, *chunk, EOS] if wrap else chunk for chunk in chunks]


def _pack(documents, length, wrap):
    arrays = [np.array(document, np.int32) for document in documents]
    return list(pack(arrays, length, Sequences(bos_id=BOS, eos_id=EOS, wrap=wrap)))


@settings(deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(3, 9), max_size=20), max_size=8),
    length=st.integers(3, 12),
    wrap=st.booleans(),
)
def test_sequences_are_the_chunks_of_the_stream_of_documents(documents, length, wrap):
    sequences = _pack(documents, length, wrap)
    assert [list(row) for row in sequences] == _pack_by_definition(documents, length, wrap)
    assert all(row.dtype == np.int32 and row.shape == (length,) for row in sequences)


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (False, [[3, 4, 5, EOS], [6, 7, EOS, 8]]),
        (True, [[BOS, 3, 4, EOS], [BOS, 5, EOS, EOS], [BOS, 6, 7, EOS], [BOS, EOS, 8, EOS]]),
    ],
)
def test_an_example(wrap, expected):
    sequences = _pack([[3, 4, 5], [6, 7], [8]], 4, wrap)
    assert [row.tolist() for row in sequences] == expected


@settings(deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(3, 9), max_size=12), max_size=8),
    length=st.integers(2, 6),
)
@example(documents=[[3, 4, 5, 6], [7], []], length=4)
def test_a_padded_document_has_sequences_of_its_own(documents, length):
    """Oracle: its tokens, and EOS to the end of its last sequence. One that fills its sequences has no EOS;
    it used to add a sequence of nothing but EOS, an empty text."""
    expected = []
    for document in documents:
        count = max(1, -(-len(document) // length))
        expected += [*document, *[EOS] * length * count][: length * count]
    arrays = [np.array(document, np.int32) for document in documents]
    found = list(pack(arrays, length, Sequences("padded", BOS, EOS)))
    assert [token for row in found for token in row.tolist()] == expected
    assert all(row.dtype == np.int32 and row.shape == (length,) for row in found)


@functools.cache
def _vocabulary(name: str, normalize: str) -> Tokenizer:
    """A vocabulary of ASCII's letters, space and full stop; GPT-2's covers everything."""
    if name == "hub":
        model = tokenizers.models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2, "b": 3}, "[UNK]")
        words = tokenizers.Tokenizer(model)
        words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        config = TokenizerConfig(kind="hub")
        return HubTokenizer(config, normalize, words.to_str().encode(), Special(4, 1, 1))
    config = TokenizerConfig(kind="gpt2")
    if name != "gpt2":
        config = TokenizerConfig(model_type=name, vocab_size=60)
    letters = " ".join(string.ascii_letters)
    return train_tokenizer(config, [f"the quick brown fox. {letters}"] * 20, normalize)


@pytest.mark.parametrize("normalize", NORMALIZERS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@settings(deadline=None)
@given(text=st.text("ab 'é1.\n▁\0\x1e", max_size=40))
def test_a_document_in_stretches_has_the_ids_of_the_whole(vocabulary, normalize, text):
    """With stretches of 4 characters; a run that no piece spells is one unk, wherever it is cut."""
    tokenizer = _vocabulary(vocabulary, normalize)
    for document in (text, NORMALIZERS[normalize](text)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "_CHARACTERS_AT_ONCE", 4)
            [ids] = encode_documents(tokenizer, [document])
        np.testing.assert_array_equal(ids, tokenizer.encode(document))
        assert ids.dtype == np.int32


def test_a_long_document_keeps_the_spaces_at_which_it_is_cut(monkeypatch):
    """Oracle: decoding. "the quick brown" used to become "the quickbrown"."""
    text = "the quick brown fox " * 9 + "jumps"
    monkeypatch.setattr(packing, "_CHARACTERS_AT_ONCE", 8)
    for vocabulary in ("gpt2", "char"):
        tokenizer = _vocabulary(vocabulary, "text8")
        [ids] = encode_documents(tokenizer, [text])
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["он сказал, что " * 9 + "мир", "他說，\n世界 12\n" * 9 + "x"])
def test_a_long_document_in_any_script_is_cut(text, monkeypatch):
    """8 MB of Russian took 2 GB: only between Latin letters was it cut. Oracle: the ids of the whole text."""
    tokenizer = _vocabulary("gpt2", "none")
    monkeypatch.setattr(packing, "_CHARACTERS_AT_ONCE", 8)
    lengths, original = [], tokenizer._encode_batch
    monkeypatch.setattr(
        tokenizer, "_encode_batch", lambda texts: lengths.extend(map(len, texts)) or original(texts)
    )
    [ids] = encode_documents(tokenizer, [text])
    assert max(lengths) <= 16
    np.testing.assert_array_equal(ids, tokenizer.encode(text))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "prompted"])
def test_a_record_separator_is_a_character_like_any_other(kind, count):
    """It ends a prompt only in a pair. Here one used to put BOS into the text, and two raised TypeError."""
    tokenizer = _vocabulary("gpt2", "none")
    texts = ["before", PROMPT_END.join(["part"] * (count + 1)), "after"]
    found = list(encode_documents(tokenizer, texts, kind))
    for ids, text in zip(found, texts, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert tokenizer.bos_id not in np.concatenate(found)


def test_a_record_separator_ends_the_prompt_of_a_pair():
    tokenizer = _vocabulary("gpt2", "none")
    [ids] = encode_documents(tokenizer, [f"ask {PROMPT_END} answer"], "prompted")
    parts = (tokenizer.encode("ask "), [tokenizer.bos_id], tokenizer.encode(" answer"))
    np.testing.assert_array_equal(ids, np.concatenate(parts))


@pytest.mark.parametrize("text", ["alone", f"a{PROMPT_END}b{PROMPT_END}c"])
def test_a_text_that_is_no_pair_is_refused_by_name(text):
    tokenizer = _vocabulary("gpt2", "none")
    sequences = Sequences("prompted", tokenizer.bos_id, tokenizer.eos_id)
    with pytest.raises(DataError, match=r"has no prompt; data\.sequences='prompted' needs"):
        list(pack(encode_documents(tokenizer, [text], "prompted"), 16, sequences))


def _spelling(bos, eos, mask=None):
    """A vocabulary of which texts can spell the special tokens, as those of published models."""
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<s>", "</s>"] + [mask] * (mask is not None))
    rows = words.get_vocab_size()
    special = Special(rows, *(word and words.token_to_id(word) for word in (bos, eos, mask)))
    return HubTokenizer(TokenizerConfig(kind="hub"), "none", words.to_str().encode(), special)


@pytest.mark.parametrize("bos", ["<s>", "</s>"])
@pytest.mark.parametrize("prompt", ["", "a", "<s> a", "a </s> b", "a <s>"])
@pytest.mark.parametrize("completion", ["b a", "</s>", "b </s>", "b </s> a", "<s> b"])
def test_a_pair_is_learnt_as_it_is_or_refused(bos, prompt, completion):
    """Oracle: `arrange`, by which the model learns. The whole completion used to be padding where a prompt
    spelled a token that is both BOS and EOS."""
    tokenizer = _spelling(bos, "</s>")
    sequences = Sequences("prompted", tokenizer.bos_id, tokenizer.eos_id)
    faults = []
    documents = encode_documents(
        tokenizer, [f"{prompt}{PROMPT_END}{completion}"], "prompted", 12, faults.append
    )
    found = list(pack(documents, 12, sequences))
    before, behind = tokenizer.encode(prompt), tokenizer.encode(completion)
    if bos in prompt:
        assert "spells BOS" in str(faults[0])
    elif completion == "b </s> a":
        assert "spells EOS" in str(faults[0])
    else:
        [row] = found
        arranged = arrange(row[None], sequences)
        learnt = row[np.asarray(arranged.free[0])]
        expected = [*behind, *[tokenizer.eos_id] * (not completion.endswith("</s>"))]
        np.testing.assert_array_equal(learnt, expected)
        seen = np.asarray(arranged.segments[0]) == 0
        assert np.count_nonzero(seen) == len(before) + 1 + len(learnt)
        ends, padding = text_ends(row[None], sequences)
        np.testing.assert_array_equal(padding[0], ~seen)
        np.testing.assert_array_equal(np.flatnonzero(ends[0]), [np.count_nonzero(seen) - 1])
        size = len(before) + 1 + len(expected)  # also where the completion brings its EOS
        pair = [f"{prompt}{PROMPT_END}{completion}"]
        assert len(list(encode_documents(tokenizer, pair, "prompted", size))) == 1
        with pytest.raises(DataError, match=rf"have {size} tokens .* data\.length={size - 1}"):
            list(encode_documents(tokenizer, pair, "prompted", size - 1))
    assert len(faults) + len(found) == 1


def test_part_of_a_document_that_spells_bos_is_no_pair():
    tokenizer = _spelling("</s>", "</s>")
    with pytest.raises(DataError, match=r"has no prompt; data\.sequences='prompted' needs"):
        list(encode_documents(tokenizer, ["a </s> b"], "prompted"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_once", [2**20, 4])
def test_a_text_that_spells_mask_is_refused_in_its_place(kind, at_once, monkeypatch):
    """It was learnt: one MASK in a text cost the loss a million nats, and 16 bits stored it as token 0."""
    tokenizer = _spelling("<s>", "</s>", "<|mask|>")
    monkeypatch.setattr(packing, "_CHARACTERS_AT_ONCE", at_once)
    order = []
    texts = ["a b a b a b", "a b a <|mask|> b", "b", "<|mask|>", "b a b a"]
    if kind == "prompted":
        texts = [f"{text}{PROMPT_END}a" for text in texts[:3]] + [
            f"b{PROMPT_END}{texts[3]}",
            "\x1eb",
        ]
    for ids in encode_documents(tokenizer, texts, kind, None, order.append):
        assert tokenizer.mask_id not in ids
        order.append(ids.tolist())
    assert [isinstance(each, DataError) for each in order] == [False, True, False, True, False]
    assert order[1].kind == order[3].kind == "MASK in a text"
    assert f"spells MASK, token {tokenizer.mask_id}, " in str(order[3])
    where = "'a b a <|mask|> b' spells" if kind != "prompted" else "'a b a <|mask|> b' or"
    assert where in str(order[1])
    assert kind == "prompted" or "after 'a b a', which no model" in str(order[1])
    # An evaluation has no such field; of pairs it reads none but a run's own.
    assert kind == "prompted" or "or, for training, let data.skip_bad skip" in str(order[1])


@pytest.mark.parametrize("bos", ["<s>", "</s>"])
@pytest.mark.parametrize("text", ["a b", "a b </s>", "</s>", "<s> a", "a </s> b", "a </s> </s>"])
def test_a_padded_text_is_learnt_as_it_is_or_refused(bos, text):
    """Oracle: `arrange`, by which the model learns. What follows an EOS in a text used to be padding."""
    tokenizer, faults = _spelling(bos, "</s>"), []
    sequences = Sequences("padded", tokenizer.bos_id, tokenizer.eos_id)
    documents = encode_documents(tokenizer, [text], "padded", None, faults.append)
    found = list(pack(documents, 2, sequences))
    ids = tokenizer.encode(text).tolist()
    if tokenizer.eos_id in ids[:-1]:
        assert f"spells EOS, token {tokenizer.eos_id}, after 'a', which ends" in str(faults[0])
        assert found == []
        return
    assert faults == []
    learnt = [
        token for row in found for token in row[np.asarray(arrange(row[None], sequences).free[0])]
    ]
    # The EOS of a text that fills its sequence is not seen; it adds no sequence of its own.
    whole = [token for token in ids if token != tokenizer.eos_id]
    assert learnt == whole + [tokenizer.eos_id] * (len(whole) % 2 == 1 or not whole)
