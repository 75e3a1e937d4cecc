"""Vocabularies from files. Oracles: the library that wrote the file; counts of texts made for the purpose."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from sdtt_jax.data import DataConfig, TokenizerConfig, load_tokenizer, prepare, train_tokenizer
from sdtt_jax.data.inspection import inspect_data
from sdtt_jax.data.tokenizer_json import losses
from sdtt_jax.errors import ConfigError, DataError

# Thirty texts of eight words; the vocabularies below have "w0" to "w9" but not "strange".
TEXTS = [" ".join(f"w{(i + j) % 10}" for j in range(6)) + f" w{i // 10} strange" for i in range(30)]
KNOWN = {f"w{i}": i for i in range(10)}


def _word_level(unk="[UNK]"):
    model = models.WordLevel(KNOWN | {"[UNK]": 10, "</s>": 11, "end": 12}, unk_token=unk)
    return tokenizers.Tokenizer(model)


def _unigram():
    pieces = [("<unk>", 0.0), *((word, -2.0) for word in KNOWN), ("</s>", 0.0), ("end", -9.0)]
    return tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))


@pytest.fixture(params=["word-level", "unigram"])
def tokenizer_json(request, tmp_path):
    """A tokenizer.json of the kind that comes with encoders: it truncates and pads texts."""
    made = _word_level() if request.param == "word-level" else _unigram()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["</s>"])
    made.enable_truncation(4)
    made.enable_padding(length=16)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    """A model as others train one: with normalisation, a space before each text, and no BOS."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.removesuffix(" strange") for text in TEXTS),
        model_writer=written,
        vocab_size=24,
        hard_vocab_limit=False,
        bos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("given") / "spiece.model"
    path.write_bytes(written.getvalue())
    return path


def _prepared(folder, file):
    corpus = folder / "x.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    config = TokenizerConfig(kind="file", file=str(file))
    data = DataConfig(str(corpus), length=9, validation_fraction=0.1)
    info = prepare(data, config, folder / "data", folder / "tokenizer")
    return (
        info,
        load_tokenizer(folder / "tokenizer"),
        inspect_data(folder / "data", folder / "tokenizer"),
    )


def test_a_tokenizer_json_is_prepared_with_and_its_unknowns_are_counted(tokenizer_json, tmp_path):
    info, tokenizer, found = _prepared(tmp_path, tokenizer_json)
    theirs = tokenizers.Tokenizer.from_file(str(tokenizer_json))
    theirs.no_truncation()
    theirs.no_padding()
    assert [tokenizer.encode(text).tolist() for text in TEXTS] == [
        theirs.encode(text).ids for text in TEXTS
    ]
    end = theirs.token_to_id("</s>")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (end, end, info.vocab_size)
    # A sequence is a text: eight words, one of them unknown, and EOS.
    assert info.num_train == 27
    assert info.num_unknown == len(TEXTS)
    assert found["splits"]["train"]["unknown"] == 1 / 9
    assert found["splits"]["train"]["bytes_per_token"] > 1
    assert found["manifest"]["tokenizer"]["kind"] == "file"


def test_a_sentencepiece_model_is_prepared_with(sentencepiece_model, tmp_path):
    _, tokenizer, found = _prepared(tmp_path, sentencepiece_model)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    assert [tokenizer.encode(text).tolist() for text in TEXTS] == theirs.encode(TEXTS)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (theirs.eos_id(), theirs.eos_id())
    lost = np.concatenate(theirs.encode(TEXTS)) == theirs.unk_id()
    assert found["splits"]["train"]["unknown"] == pytest.approx(lost.mean(), rel=0.2)
    assert lost.any()


def test_a_character_that_cannot_be_learned_is_refused_with_what_would_help():
    """Vocabularies of characters do not fall back to bytes."""
    for kind, said in (
        ("char", r"or choose tokenizer\.kind='gpt2'"),
        ("bpe", "byte_fallback=True or"),
    ):
        config = TokenizerConfig(model_type=kind, vocab_size=32)
        with pytest.raises(DataError, match=rf"cannot hold U\+0000, .*{said}"):
            train_tokenizer(config, ["in the\0beginning was the word"])


def test_data_of_another_file_are_not_gone_on_with(sentencepiece_model, tokenizer_json, tmp_path):
    _prepared(tmp_path, tokenizer_json)
    with pytest.raises(ConfigError, match=r"tokenizer\.file: .*tokenizer\.json.* -> .*\.model"):
        _prepared(tmp_path, sentencepiece_model)


def test_which_token_ends_a_text_is_said_beside_the_file_or_by_its_usual_name(tmp_path):
    made, path = _word_level(), tmp_path / "tokenizer.json"
    made.save(str(path))
    config = TokenizerConfig(kind="file", file=str(path))
    with pytest.raises(DataError, match=r"does not say which token ends .* tokenizer_config\.json"):
        train_tokenizer(config, ())
    beside = tmp_path / "tokenizer_config.json"
    beside.write_text(json.dumps({"eos_token": {"content": "end"}}), "utf-8")
    assert train_tokenizer(config, ()).eos_id == 12


@pytest.mark.parametrize("which", ["bos", "eos"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("</nope>", "which the vocabulary does not have"),
        (5, "must be a token's text, .* not 5"),
        (["</s>"], r"must be a token's text, .* not \['</s>'\]"),
        ({"lstrip": False}, "must be a token's text"),
    ],
)
def test_a_name_beside_the_file_that_is_no_token_is_refused(
    tokenizer_json, tmp_path, which, name, message
):
    """Oracle: the file beside it has the last word, so that no other token takes its place."""
    names = {"eos_token": "</s>", f"{which}_token": name}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names), "utf-8")
    with pytest.raises(DataError, match=rf"tokenizer_config\.json: {which}_token .*{message}"):
        train_tokenizer(TokenizerConfig(kind="file", file=str(tokenizer_json)), ())


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_a_vocabulary_with_all_bytes_has_no_unknowns(tmp_path, kind):
    """Such a vocabulary often names its end-of-text token as the unknown one."""
    path = tmp_path / "tokenizer.json"
    fallback = kind == "byte-fallback"
    spelt = [f"<0x{b:02X}>" for b in range(256)] if fallback else sorted(ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*spelt, "</s>"])}
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, [], unk_token="</s>", byte_fallback=fallback)
    )
    made.pre_tokenizer = None if fallback else ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["</s>"])
    made.save(str(path))
    tokenizer = train_tokenizer(TokenizerConfig(kind="file", file=str(path)), ())
    assert tokenizer.unk_id is None
    assert len(tokenizer.encode("é 語")) == 6
    assert tokenizer.count_lost("é 語") == 0


def test_unknown_words_are_counted_also_if_they_become_the_end_of_a_text(tmp_path):
    """Otherwise "w1 strange w2" is two texts without a word; "strange" stands once in each text."""
    made, path = _word_level(unk="</s>"), tmp_path / "tokenizer.json"
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["</s>"])
    made.save(str(path))
    info, tokenizer, _ = _prepared(tmp_path, path)
    assert tokenizer.unk_id == tokenizer.eos_id
    assert info.num_unknown == len(TEXTS)


@pytest.mark.parametrize("kind", ["byte-level", "characters"])
def test_characters_that_vanish_are_counted(tmp_path, kind):
    """BPE without unk leaves them out. "strange" has five letters that the vocabulary lacks, once a text."""
    path = tmp_path / "tokenizer.json"
    space = {"byte-level": "Ġ", "characters": " "}[kind]
    tokens = [*"w0123456789", space, "s", "t", "w1", "w2", "</s>", "12"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [("w", "1"), ("w", "2")]))
    if kind == "byte-level":
        made.pre_tokenizer = ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["</s>"])
    made.save(str(path))
    info, tokenizer, _ = _prepared(tmp_path, path)
    assert info.num_unknown == 5 * len(TEXTS)
    # The letters of a token that a text spells are not looked for. Of é the bytes are.
    lost = {"w1 strange</s>w2": 5, "w1": 0, "": 0, "é": 2 if kind == "byte-level" else 1}
    assert {text: tokenizer.count_lost(text) for text in lost} == lost


@pytest.mark.parametrize("text", ["a xyz", "axyz", "xyz2", "é.xyz", "<q>xyz", "xyz日", "xyzxyz"])
def test_an_added_token_that_is_a_single_word_keeps_nothing_of_longer_ones(text):
    """Oracle: the characters of the tokens that the library itself finds."""
    made = tokenizers.Tokenizer(models.BPE({"a": 0, " ": 1, "</s>": 2}, []))
    made.add_tokens([tokenizers.AddedToken("xyz", single_word=True), "<q>"])
    counter = losses(made)
    assert counter is not None
    assert counter.count(text) == len(text) - len("".join(made.encode(text).tokens))


@pytest.mark.parametrize("text", ["apq Pqz", "PQpq", "lost a", "", "é\ue000"])
def test_an_added_token_is_found_in_a_normalised_text(text):
    """Its letters were counted as lost. Oracle: the characters of the tokens that the library finds."""
    made = tokenizers.Tokenizer(models.BPE({"a": 0, " ": 1, "lost": 2, "</s>": 3}, []))
    made.normalizer = normalizers.Lowercase()
    made.add_tokens(["Pq"])
    counter = losses(made)
    assert counter is not None
    assert counter.count(text) == len(text) - len("".join(made.encode(text).tokens))


def test_a_character_is_no_token_where_it_has_another_mark():
    """Oracle: the ids. An a that goes on a word was taken for a token."""
    model = models.BPE({"a": 0, "##b": 1, "</s>": 2}, [], continuing_subword_prefix="##")
    made = tokenizers.Tokenizer(model)
    counter = losses(made)
    assert counter is not None
    assert {text: len(made.encode(text).ids) for text in ("ab", "aa", "ba")} == {
        "ab": 2,
        "aa": 1,
        "ba": 0,
    }
    assert [counter.count(text) for text in ("ab", "aa", "ba")] == [0, 1, 2]


def test_a_character_is_lost_of_which_a_byte_is_no_token():
    """Oracle: the ids. Falling back to bytes keeps a character only if all of its bytes are tokens."""
    vocabulary = {"a": 0, "<0xC3>": 1, "<0xA9>": 2, "</s>": 3}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    counter = losses(made)
    assert counter is not None
    assert made.encode("aéè").ids == [0, 1, 2]
    assert counter.count("aéè") == 1


def test_a_text_has_the_same_ids_each_time(tmp_path):
    """A file may ask for merges to be left out at random (dropout), which is for training."""
    model = models.BPE({"a": 0, "b": 1, "ab": 2, "</s>": 3}, [("a", "b")], dropout=0.5)
    made, path = tokenizers.Tokenizer(model), tmp_path / "tokenizer.json"
    made.add_special_tokens(["</s>"])
    made.save(str(path))
    tokenizer = train_tokenizer(TokenizerConfig(kind="file", file=str(path)), ())
    assert tokenizer.encode("ab" * 50).tolist() == [2] * 50


def test_a_byte_order_mark_before_a_file_is_none_of_it(tokenizer_json):
    """It was "expected value at line 1 column 1". Oracle: the same file without."""
    config = TokenizerConfig(kind="file", file=str(tokenizer_json))
    expected = train_tokenizer(config, ()).encode(TEXTS[0])
    tokenizer_json.write_bytes(b"\xef\xbb\xbf" + tokenizer_json.read_bytes())
    assert train_tokenizer(config, ()).encode(TEXTS[0]).tolist() == expected.tolist()


@pytest.mark.parametrize("charsmap", [None, "", "AAAA"])
def test_a_file_at_which_its_library_panics_is_an_error_in_words(tokenizer_json, charsmap):
    """Its panics are no `Exception`. Files of another library have no map of characters."""
    content = json.loads(tokenizer_json.read_text("utf-8"))
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    tokenizer_json.write_text(json.dumps(content), "utf-8")
    said = "cannot be read .*" + (
        "no precompiled_charsmap; take" if not charsmap else "Precompiled"
    )
    with pytest.raises(DataError, match=rf"tokenizer\.file: .*tokenizer\.json {said}"):
        train_tokenizer(TokenizerConfig(kind="file", file=str(tokenizer_json)), ())


def test_a_file_that_is_no_vocabulary_is_named(tmp_path):
    config = TokenizerConfig(kind="file", file=str(tmp_path / "no.model"))
    with pytest.raises(ConfigError, match=r"tokenizer\.file: .*no\.model does not exist"):
        train_tokenizer(config, ())
    for name, message in (
        ("no.model", "is not a SentencePiece model"),
        ("no.json", "cannot be read"),
    ):
        (tmp_path / name).write_bytes(b"{}")
        with pytest.raises(DataError, match=rf"tokenizer\.file: .*{name} {message}"):
            train_tokenizer(dataclasses.replace(config, file=str(tmp_path / name)), ())
    # As in a run's tokenizer/, of either kind.
    for name in ("tokenizers.json", "sentencepiece.model"):
        (tmp_path / name).write_bytes(b"{}")
        said = re.escape(f"cannot be read (give {tmp_path / name} beside it)")
        with pytest.raises(DataError, match=said):
            train_tokenizer(dataclasses.replace(config, file=str(tmp_path / "no.json")), ())
    for wrong in ({"kind": "file"}, {"file": "x.json"}, {"kind": "file", "file": "vocab.txt"}):
        with pytest.raises(ConfigError, match=r"go together|must be a SentencePiece"):
            TokenizerConfig(**wrong)
