"""The table of corpora, and how a corpus is divided. Oracles: texts written for the purpose."""

import gzip
import json
import tempfile

import pytest

from sdtt_jax.data import DETOKENIZERS, DataConfig
from sdtt_jax.data.corpora import CORPORA, Corpus, documents, find_corpus
from sdtt_jax.data.published import PublishedCorpus
from sdtt_jax.errors import ConfigError, DataError
from tests.data.conftest import divide

TEXTS = ["the company 's shares rose N %", " ", "it is n't so"]


def _splits(config):
    with tempfile.TemporaryDirectory() as folder:
        documents_of = divide(config, folder)
        return [list(documents_of(split)) for split in ("train", "validation")]


def _write_lines(path, texts, field="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), "utf-8")
    return path


def test_every_published_corpus_reads_its_field_and_undoes_its_tokens(tmp_path):
    published = [c for c in CORPORA.values() if isinstance(c.source, PublishedCorpus)]
    assert len(published) >= 30
    for corpus in published:
        split = corpus.splits[-1]
        folder = tmp_path / corpus.name
        _write_lines(folder / f"{split}.jsonl", TEXTS, corpus.source.text_field)
        undo = DETOKENIZERS[corpus.detokenize]
        read = list(documents(DataConfig(corpus.name), split, folder))
        assert read == [undo(TEXTS[0]), undo(TEXTS[2])]


def test_a_splits_file_may_have_its_suffix_in_any_case_and_be_linked(tmp_path):
    place = tmp_path / "wikitext2"
    _write_lines(tmp_path / "x.JSONL", TEXTS[:1])
    place.mkdir()
    (place / "train.JSONL").symlink_to(tmp_path / "x.JSONL")
    assert len(list(documents(DataConfig("wikitext2"), "train", place))) == 1
    (tmp_path / "x.JSONL").unlink()
    with pytest.raises(DataError, match=r"train\.JSONL is a link to .*, which leads nowhere"):
        list(documents(DataConfig("wikitext2"), "train", place))


@pytest.mark.parametrize("suffix", [".JSONL.GZ", ".json.gz", ".Jsonl.gz"])
def test_a_splits_file_may_be_compressed_as_files_of_a_folder_may(tmp_path, suffix):
    """Oracle: the detokenizer on its own. They were "no train split"."""
    packed = gzip.compress(_write_lines(tmp_path / "x.jsonl", TEXTS).read_bytes())
    for name in ("train", "Train"):  # the second is of another split
        (tmp_path / f"{name}{suffix}").write_bytes(packed)
    undo = DETOKENIZERS[find_corpus("wikitext2").detokenize]
    read = list(documents(DataConfig("wikitext2"), "train", tmp_path))
    assert read == [undo(TEXTS[0]), undo(TEXTS[2])]


def test_a_second_embedded_corpus_is_read_and_not_the_bible(monkeypatch):
    poems = [f"poem {index}" for index in range(30)]
    monkeypatch.setitem(CORPORA, "poems", Corpus("poems", lambda: iter(poems)))
    assert list(documents(DataConfig("poems"))) == poems
    train, validation = _splits(DataConfig("poems", validation_fraction=0.2))
    assert sorted([*train, *validation]) == sorted(poems)
    assert len(validation) == 6


def test_the_corpus_of_the_papers_config_loads_from_files(tmp_path, monkeypatch):
    from experiments.configs.owt_small import owt

    texts = [f"web page {index}" for index in range(200)]
    _write_lines(tmp_path / "openwebtext" / "train" / "0.jsonl", texts)
    monkeypatch.setenv("SDTT_JAX_CORPORA", str(tmp_path))
    train, validation = _splits(owt("small").data)
    assert len(validation) == 2
    assert sorted([*train, *validation]) == sorted(texts)


def test_a_corpus_keeps_its_own_held_out_split(tmp_path, monkeypatch):
    for split in ("train", "validation", "test"):
        _write_lines(tmp_path / "wikitext2" / f"{split}.jsonl", [f"a {split} text"])
    _write_lines(tmp_path / "lm1b" / "train.jsonl", ["a train text"])
    _write_lines(tmp_path / "lm1b" / "test.jsonl", ["a test text"])
    monkeypatch.setenv("SDTT_JAX_CORPORA", str(tmp_path))
    assert _splits(DataConfig("wikitext2")) == [["a train text"], ["a validation text"]]
    assert _splits(DataConfig("lm1b")) == [["a train text"], ["a test text"]]


def test_a_corpus_without_a_training_split_cannot_be_trained_on():
    with pytest.raises(
        ConfigError, match=r"split of lambada='train' is unknown.* choose one of test"
    ):
        _splits(DataConfig("lambada"))


def test_a_folder_beside_a_corpus_that_needs_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="world_english_bible is not a published corpus"):
        list(documents(DataConfig(), folder=tmp_path))
    path = _write_lines(tmp_path / "x.jsonl", ["a"])
    with pytest.raises(ConfigError, match=r"x\.jsonl is not a published corpus"):
        list(documents(DataConfig(str(path)), folder=tmp_path))


def test_a_path_with_a_slash_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write_lines(tmp_path / "openwebtext" / "x.jsonl", ["mine"])
    assert list(documents(DataConfig("./openwebtext"))) == ["mine"]
    assert find_corpus("openwebtext") is CORPORA["openwebtext"]


def test_documents_are_detokenised_before_they_are_normalised(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a well @-@ known thing", "utf-8")
    config = DataConfig(corpus=str(path), detokenize="wikitext", normalize="text8")
    assert list(documents(config)) == ["a well known thing"]


def test_a_quarter_of_the_documents_is_held_out_and_none_is_on_both_sides(tmp_path):
    texts = [f"document {index % 40}" for index in range(80)]  # Every document twice.
    path = _write_lines(tmp_path / "x.jsonl", texts)
    train, validation = _splits(DataConfig(corpus=str(path), validation_fraction=0.25))
    assert len(set(validation)) == 10
    assert set(train) | set(validation) == set(texts)
    assert not set(train) & set(validation)
    assert train == [text for text in texts if text in set(train)]


def test_which_documents_are_held_out_does_not_depend_on_their_order(tmp_path):
    texts = [f"document {index}" for index in range(50)]
    sides = []
    for order in (texts, texts[::-1]):
        path = _write_lines(tmp_path / f"{order[0]}.jsonl", order)
        sides.append(set(_splits(DataConfig(corpus=str(path)))[1]))
    assert sides[0] == sides[1]


def test_a_single_document_gives_its_tail_cut_at_a_space(tmp_path):
    path = tmp_path / "x.txt"
    words = [f"word{index}" for index in range(1000)]
    path.write_text(" ".join(words), "utf-8")
    [[train], [validation]] = _splits(DataConfig(corpus=str(path), validation_fraction=0.1))
    assert train.split() + validation.split() == words
    assert len(validation) == pytest.approx(0.1 * path.stat().st_size, abs=10)


def test_a_corpus_without_text_is_named(tmp_path):
    path = _write_lines(tmp_path / "x.jsonl", ["123", " "])
    with pytest.raises(DataError, match=r"x\.jsonl holds no text after normalize='text8'"):
        list(documents(DataConfig(str(path), normalize="text8")))


def test_a_corpus_that_is_nowhere_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"corpora: did you mean 'wikitext2'\?"):
        find_corpus("wikitxt2")
    with pytest.raises(ConfigError, match=r"data\.corpus: .*nowhere does not exist.* openwebtext"):
        list(documents(DataConfig(corpus=str(tmp_path / "nowhere"))))
    with pytest.raises(ConfigError, match=r"data\.corpus: the folder .* holds no \.txt"):
        list(documents(DataConfig(corpus=str(tmp_path))))
    (tmp_path / "x.docx").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"data\.corpus: .*x\.docx is not a \.txt"):
        list(documents(DataConfig(corpus=str(tmp_path / "x.docx"))))
