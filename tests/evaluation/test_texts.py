"""Texts as an evaluation reads them. Oracle: lines written by hand."""

import dataclasses
import json
import types

import numpy as np
import pytest
import tokenizers

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.data.corpora import CORPORA
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.evaluation import texts as texts_module
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.texts import (
    held_out,
    held_out_name,
    openings,
    read_texts,
    training_texts,
)
from tests.worlds import as_causal, as_model, noisy_params, tiny_network


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    """JSON allows a bare U+2028 or U+0085 in a string; Python's `splitlines` would split there."""
    path, tokenizer = tmp_path / "texts.jsonl", train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    text = "one\u2028two\u0085three"
    path.write_bytes(f'{{"text": "{text}"}}\r\n\n{{"tokens": [1, 2]}}\n'.encode())
    first, second = read_texts(str(path), tokenizer, tokenizer.vocab_size)
    assert tokenizer.decode(first) == text
    np.testing.assert_array_equal(second, [1, 2])


def test_held_out_folders_say_how_many_files_are_read(tmp_path):
    """They are read by the reader of a run's corpus."""
    for name in ("a.TXT", "b.jsonl.xz", ".hidden.txt"):
        (tmp_path / "texts" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text("text", "utf-8")
    (tmp_path / "test").symlink_to(tmp_path / "texts")
    for settings, name in (
        ({"held_out": str(tmp_path / "texts")}, str(tmp_path / "texts")),
        ({"held_out": "lambada", "held_out_folder": str(tmp_path)}, "lambada"),
    ):
        subject = Subject(None, Settings(**settings))
        assert held_out_name(subject) == f"{name} (1 of 2 files (not read: .xz))"
    file = str(tmp_path / "texts" / "a.TXT")
    assert held_out_name(Subject(None, Settings(held_out=file))) == file


@pytest.mark.parametrize("name", CORPORA)
def test_a_named_set_that_is_read_from_its_train_split_says_so(name):
    """Oracle: the splits of the table. A model of OpenWebText was trained on what --held_out reads of it."""
    corpus, trained = CORPORA[name], " (train split)"
    own = {"validation", "test"} & {*corpus.splits}
    assert held_out_name(Subject(None, Settings(held_out=name))) == name + ("" if own else trained)


def test_texts_are_read_as_a_corpus_is(tmp_path):
    """Windows' line ends become line feeds and its byte-order mark is dropped."""
    path = tmp_path / "texts.jsonl"
    tokenizer = train_tokenizer(TokenizerConfig(model_type="char"), ["ab\n"])
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n{"text": ""}\n{"text": "\xd0\xb6"}')
    texts = read_texts(str(path), tokenizer, tokenizer.vocab_size, readable=False)
    assert [tokenizer.decode(text) for text in texts] == ["a\nb", "", "⁇"]
    texts = read_texts(str(path), tokenizer, tokenizer.vocab_size)
    assert [tokenizer.decode(next(texts)) for _ in range(2)] == ["a\nb", ""]
    with pytest.raises(DataError, match=r"texts\.jsonl, line 3 holds nothing that the vocabulary"):
        next(texts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", r"texts\.jsonl is empty"),
        ('{"tokens": []}', r"texts\.jsonl is empty"),
        (
            '{"tokens": [1]}\n{"tokens": [1, 0, 1]}',
            r"texts\.jsonl has no text of prompt_tokens=20 tokens \(the longest has 3\); give a lower",
        ),
    ],
)
def test_a_file_without_a_prompt_is_named_with_what_it_lacks(tmp_path, content, said):
    path, network = tmp_path / "texts.jsonl", tiny_network()
    path.write_text(content)
    model = as_model(network, noisy_params(network, 0))
    settings = Settings(prompts=str(path), prompt_tokens=20)
    with pytest.raises(ConfigError, match=f"--prompts={tmp_path}/{said}"):
        openings(Subject(model, settings))


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]", '{"text": "no tokenizer"}'])
def test_a_line_that_is_no_text_is_named(tmp_path, line):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"tokens": [1]}\n\n' + line)
    with pytest.raises(DataError, match=r"texts\.jsonl, line 3 "):
        list(read_texts(str(path), None, 9))


@pytest.mark.parametrize("tokens", ["[9]", "[-1]", "[1099511627776]", f"[{10**30}]"])
def test_an_id_that_the_model_does_not_have_is_named_with_its_line(tmp_path, tokens):
    """The model has nine ids; 2^40 does not fit into an int32, nor 10^30 into any integer of NumPy's."""
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"tokens": [0, 8]}}\n{{"tokens": {tokens}}}\n')
    texts = read_texts(str(path), None, 9)
    assert next(texts).tolist() == [0, 8]
    with pytest.raises(
        DataError, match=r"texts\.jsonl, line 2(: there is no token| must be whole)"
    ):
        next(texts)


@pytest.mark.parametrize("tokens", ["[1.0]", "[true]", "[[1, 2]]", '"1"', "[null]", "[1e400]"])
def test_tokens_of_another_kind_are_named_with_their_line(tmp_path, tokens):
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"tokens": {tokens}}}')
    with pytest.raises(DataError, match=r"line 1 has no field .*whole numbers"):
        next(read_texts(str(path), None, 9))


def test_a_prompt_that_a_shorter_length_cuts_off_is_not_read_as_text(monkeypatch):
    """Oracle: rows written by hand, 8 BOS and 9 EOS; at length 4 the first has no completion any more."""
    rows = np.array([[1, 2, 3, 1, 2, 8, 5, 9], [1, 8, 5, 6, 7, 9, 9, 9]], np.int32)

    class Split(list):
        length, gather = 8, staticmethod(lambda places: rows[places])

    monkeypatch.setattr(texts_module, "open_split", lambda *_: Split(rows))
    model = as_model(tiny_network(), {})
    model = dataclasses.replace(
        model,
        tokenizer=types.SimpleNamespace(bos_id=8, eos_id=9),
        facts=model.facts | {"sequences": "prompted"},
    )
    for length, expected in ((8, rows), (7, rows[:, :7]), (6, rows[1:, :6]), (4, rows[1:, :4])):
        subject = Subject(model, Settings(length=length), data="run")
        np.testing.assert_array_equal(held_out(subject), expected)
    with pytest.raises(ConfigError, match="length=2 is no more than the prompt of any held-out"):
        held_out(Subject(model, Settings(length=2), data="run"))


@pytest.mark.parametrize("kind", ["script", "folder", "empty"])
def test_text_that_cannot_be_read_is_said_of_the_flag_that_was_given(tmp_path, kind):
    """Oracle: the flag's name; the corpus of a run, which reads files the same way, has another."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "script.sh").write_text("true")
    (tmp_path / "empty.txt").write_text("  ")
    path = {"script": "script.sh", "folder": "folder", "empty": "empty.txt"}[kind]
    network, tokenizer = tiny_network(), train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    model = dataclasses.replace(as_model(network, {}), tokenizer=tokenizer)
    settings = Settings(held_out=str(tmp_path / path), prompt_tokens=2)
    with pytest.raises((ConfigError, DataError), match=r"^--held_out: .*" + path):
        openings(Subject(model, settings))
    with pytest.raises((ConfigError, DataError), match=r"^--train_on: .*" + path):
        training_texts(model, "train_on", str(tmp_path / path), None, 1)


def test_files_of_text_are_not_for_models_of_pairs(tmp_path):
    """The error used to ask for fields that no flag can name."""
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "who?", "completion": "he"}\n')
    tokenizer = train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    model = dataclasses.replace(as_model(tiny_network(), {}), tokenizer=tokenizer)
    model = dataclasses.replace(model, facts=model.facts | {"sequences": "prompted"})
    with pytest.raises(
        ConfigError, match=r"^--held_out=.*pairs\.jsonl is for models of plain text"
    ):
        held_out(Subject(model, Settings(held_out=str(path))))
    with pytest.raises(
        ConfigError, match=r"^--train_on=.*pairs\.jsonl is for models of plain text"
    ):
        training_texts(model, "train_on", str(path), None, 1)


@pytest.mark.parametrize(
    ("asked", "lengths", "found"),
    [
        (0, [5, 5, 6], [5, 5, 5]),
        (3, [5, 5, 6], [5, 5, 5]),
        (9, [5, 5, 6, 1], [5, 5, 5]),
        (2, [3, 5, 6], [5, 5]),
        (3, [3, 5, 6], [2, 2, 2]),
        (9, [3, 5, 6], [2, 2, 2]),
    ],
)
def test_openings_have_their_continuations_if_enough_texts_are_long(
    tmp_path, asked, lengths, found
):
    """Prompts of 2 tokens and continuations of 3; asking for more than there are takes nothing away."""
    path, network = tmp_path / "texts.jsonl", tiny_network()
    path.write_text("".join(f'{{"tokens": {[1] * length}}}\n' for length in lengths))
    sizes = {"prompt_tokens": 2, "continuation_tokens": 3, "num_prompts": asked}
    settings = Settings(prompts=str(path), **sizes)
    rows = openings(Subject(as_model(network, noisy_params(network, 0)), settings))
    assert [len(row) for row in rows] == found


@pytest.mark.parametrize(("fact", "flag"), [(False, False), (True, False), (False, True)])
def test_held_out_text_is_wrapped_as_the_model_was_trained(tmp_path, fact, flag):
    """Oracle: BOS first and EOS last. A causal model's text is wrapped only if that is asked for."""
    path, text = tmp_path / "text.txt", "in the beginning god made the earth"
    path.write_text(text)
    tokenizer = train_tokenizer(TokenizerConfig(model_type="char"), [text])
    network, settings = tiny_network(), Settings(held_out=str(path), wrap=flag)
    for made, wrapped in ((as_model, fact or flag), (as_causal, flag)):
        model = made(network, {})
        facts = model.facts | {"begins_with_bos": fact}
        model = dataclasses.replace(model, tokenizer=tokenizer, facts=facts)
        [row, *_] = held_out(Subject(model, settings))
        ends = row[0] == tokenizer.bos_id, row[-1] == tokenizer.eos_id
        assert ends == (wrapped, wrapped)


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_a_text_of_which_the_vocabulary_leaves_nothing_is_no_text(tmp_path, kind):
    """It was scored as an EOS, or as a whole sequence of them. Oracle: the same texts without such ones."""
    file, path = tmp_path / "tokenizer.json", tmp_path / "texts.jsonl"
    # Without unk nothing is left of a text of other letters.
    vocabulary = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    vocabulary.add_special_tokens(["</s>"])
    vocabulary.save(str(file))
    tokenizer = train_tokenizer(TokenizerConfig(kind="file", file=str(file)), [])
    model = dataclasses.replace(as_model(tiny_network(), {}), tokenizer=tokenizer)
    model = dataclasses.replace(model, facts=model.facts | {"sequences": kind})

    def read(texts):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return held_out(Subject(model, Settings(held_out=str(path), length=4)))

    known = ["ab", "abba", "aaaaab", "b"]
    np.testing.assert_array_equal(read(["\u4e00", *known, "\u4e00"]), read(known))
