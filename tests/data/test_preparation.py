import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers

from experiments.configs.owt_small import owt
from sdtt_jax.data import DataConfig, TokenizerConfig, load_tokenizer, open_split, prepare, reading
from sdtt_jax.data.division import digest
from sdtt_jax.errors import ConfigError, DataError
from tests.data.conftest import divide


def _tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def _sequences(folder, split):
    stored = open_split(folder, split)
    return stored.gather(np.arange(len(stored)))


def _prepare(prepared, run, **changes):
    """Prepares the same corpus in `run`, with changed fields of the data config."""
    config = dataclasses.replace(prepared.data_config, **changes)
    return prepare(config, prepared.tokenizer_config, run / "data", run / "tokenizer")


def test_the_sequences_are_the_corpus(prepared, tmp_path):
    # Oracle: documents, encoded one by one and joined by EOS in plain Python.
    tokenizer = load_tokenizer(prepared.tokenizer)
    documents_of = divide(prepared.data_config, tmp_path)
    for split in ("train", "validation"):
        stream = []
        for text in documents_of(split):
            stream += [*tokenizer.encode(text), tokenizer.eos_id]
        rows = _sequences(prepared.data, split)
        np.testing.assert_array_equal(rows.ravel(), stream[: len(stream) // 16 * 16])


def test_the_info_says_what_is_there(prepared):
    info = prepared.info
    assert info.num_train == len(open_split(prepared.data, "train"))
    assert info.num_validation == len(open_split(prepared.data, "validation"))
    assert info.num_documents == 40
    assert (info.length, info.bos_id, info.eos_id) == (16, 1, 2)
    assert info.vocab_size == load_tokenizer(prepared.tokenizer).vocab_size
    assert info.characters_per_token == pytest.approx(1, abs=0.001)
    total = (info.num_train + info.num_validation) * 16
    assert info.num_characters == pytest.approx(total, rel=0.001)


def test_a_finished_folder_is_only_read(prepared):
    """It is neither written nor made again: no pass over the text is reported."""
    before = _tree(prepared.data.parent)
    passes = []

    def track(items, *title):
        passes.append(title)
        return items

    arguments = (prepared.data_config, prepared.tokenizer_config)
    assert prepare(*arguments, prepared.data, prepared.tokenizer, track) == prepared.info
    assert passes == []
    assert _tree(prepared.data.parent) == before


def test_the_same_config_gives_the_same_sequences_elsewhere(prepared, tmp_path):
    assert _prepare(prepared, tmp_path) == prepared.info
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tokenizer"]


def test_every_pass_is_tracked_and_knows_how_much_there_is(prepared, tmp_path):
    passes = []

    def track(items, title, total, size):
        passes.append((title, total, sum(map(size, items := list(items)))))
        return items

    arguments = (prepared.data_config, prepared.tokenizer_config)
    prepare(*arguments, tmp_path / "data", tmp_path / "tokenizer", track)
    assert [title for title, _, _ in passes] == [
        "reading the corpus",
        "learning the vocabulary",
        "tokenising",
        "writing the shards",
    ]
    corpus, learning, tokens, _ = (seen for _, _, seen in passes)
    assert corpus == tokens == Path(prepared.data_config.corpus).stat().st_size
    assert learning == pytest.approx(0.95 * prepared.info.num_characters, rel=0.05)
    # The tokenizer is learned from the train split, which is only known once the whole text is.
    assert [known for _, known, _ in passes] == [
        corpus,
        prepared.info.num_characters,
        tokens,
        passes[3][2],
    ]


def test_another_config_is_refused_with_the_fields(prepared):
    before = _tree(prepared.data.parent)
    with pytest.raises(ConfigError, match=r"data\.length: 16 -> 32.*data\.wrap: False -> True"):
        _prepare(prepared, prepared.data.parent, length=32, wrap=True)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size: 64 -> 65"):
        prepare(
            prepared.data_config,
            dataclasses.replace(prepared.tokenizer_config, vocab_size=65),
            prepared.data,
            prepared.tokenizer,
        )
    assert _tree(prepared.data.parent) == before


def test_finished_data_serve_any_limit_of_bad_input(prepared):
    """Oracle: the data with the first limit. No token depends on it."""
    before = _tree(prepared.data.parent)
    info = _prepare(prepared, prepared.data.parent, skip_bad=5)
    assert info == prepared.info
    assert _tree(prepared.data.parent) == before


def test_wrapped_sequences_begin_with_bos_and_end_with_eos(prepared, tmp_path):
    info = _prepare(prepared, tmp_path, wrap=True)
    rows = _sequences(tmp_path / "data", "train")
    assert rows.shape == (info.num_train, 16)
    assert set(rows[:, 0]) == {info.bos_id}
    assert set(rows[:, -1]) == {info.eos_id}


def test_a_foreign_folder_is_left_alone(prepared, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty but holds no finished data"):
        _prepare(prepared, tmp_path)
    assert (tmp_path / "data" / "precious.txt").read_text() == "mine"


def test_a_tokenizer_of_another_text_is_left_alone(prepared, tmp_path):
    (tmp_path / "x.txt").write_text("quite another text " * 100)
    prepare(
        dataclasses.replace(prepared.data_config, corpus=str(tmp_path / "x.txt")),
        prepared.tokenizer_config,
        tmp_path / "other",
        tmp_path / "tokenizer",
    )
    with pytest.raises(DataError, match="learned from another text"):
        _prepare(prepared, tmp_path)
    assert not (tmp_path / "data").exists()


def test_a_tokenizer_that_was_half_delivered_to_a_bucket_is_delivered_again(
    prepared, tmp_path, monkeypatch
):
    """A bucket cannot rename; its last file says that it is whole. Other people's files stay. Oracle: the
    bytes of the tokenizer that was delivered in one go."""
    monkeypatch.setattr("sdtt_jax.data.preparation.is_remote", lambda _: True)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        _prepare(prepared, tmp_path)
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]
    (folder / "precious.txt").rename(folder / "sentencepiece.model")
    _prepare(prepared, tmp_path)
    for path in prepared.tokenizer.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_data_with_another_tokenizer_beside_it_is_refused(prepared, tmp_path):
    shutil.copytree(prepared.data, tmp_path / "data")
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        _prepare(prepared, tmp_path)
    shutil.copytree(prepared.tokenizer, tmp_path / "tokenizer")
    path = tmp_path / "data" / "info.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"tokenizer_digest": "0"}))
    with pytest.raises(DataError, match="is not the tokenizer of"):
        _prepare(prepared, tmp_path)
    path.write_text(json.dumps(content))
    own = tmp_path / "tokenizer" / "tokenizer.json"
    own.write_text(json.dumps(json.loads(own.read_text()) | {"normalize": "none"}))
    with pytest.raises(DataError, match="is not the tokenizer of"):
        _prepare(prepared, tmp_path)


_TOO_SMALL = (
    r"^data\.corpus is too small to be divided: no text is left for the validation split\. It has only 1 "
    r".* below 20 .*data\.validation_fraction=0\.05.* 20 or more\.$"
)


def test_a_corpus_of_one_word_cannot_be_divided(tmp_path):
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(DataError, match=_TOO_SMALL):
        prepare(
            DataConfig(str(tmp_path / "x.txt")), TokenizerConfig(), tmp_path / "d", tmp_path / "t"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_gpt2_needs_no_training(prepared, tmp_path):
    config = dataclasses.replace(prepared.data_config, normalize="none", length=128, wrap=True)
    info = prepare(config, TokenizerConfig(kind="gpt2"), tmp_path / "data", tmp_path / "tokenizer")
    assert (info.vocab_size, info.bos_id, info.eos_id) == (50257, 50256, 50256)
    rows = _sequences(tmp_path / "data", "train")
    text = load_tokenizer(tmp_path / "tokenizer").decode(rows[0])
    assert text.startswith("In the beginning God created the heavens and the earth.")


def test_a_text_file_of_one_document_is_enough(tmp_path):
    """Line ends of Windows are line ends; the info says how many files of the folder were read."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "README").touch()
    path = tmp_path / "texts" / "x.txt"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog\r\n" * 200)
    info = prepare(
        DataConfig(corpus=str(path.parent), length=8),
        TokenizerConfig(model_type="char"),
        tmp_path / "data",
        tmp_path / "tokenizer",
    )
    assert info.num_validation == pytest.approx(0.05 * info.num_train, rel=0.2)
    assert info.vocab_size == 3 + 26 + 1 + 1  # Specials, letters, space, newline.
    assert info.files == "1 of 2 files (not read: README)"


def test_the_papers_data_are_prepared_as_its_config_is_written(chapters, tmp_path, monkeypatch):
    """From Parquet files of the hub's layout. Oracle: the last documents, in order, in GPT-2's vocabulary."""
    texts = [f"Page {index}. {' '.join(chapters[index % 30 :][:3])}" for index in range(120)]
    folder = tmp_path / "openwebtext" / "train"
    folder.mkdir(parents=True)
    for number in range(3):
        table = pyarrow.table({"text": texts[number * 40 : (number + 1) * 40]})
        path = folder / f"train-{number:05d}-of-00003.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=9)
    monkeypatch.setenv("SDTT_JAX_CORPORA", str(tmp_path))
    monkeypatch.setattr(reading, "PART_BYTES", 50_000)
    config = owt("small")
    info = prepare(config.data, config.tokenizer, tmp_path / "data", tmp_path / "tokenizer")
    rows = _sequences(tmp_path / "data", "validation")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    expected = [*tokenizer.encode(texts[-1]), tokenizer.eos_id][: 1022 * len(rows)]
    np.testing.assert_array_equal(rows[:, 1:-1].ravel(), expected)
    assert (info.num_documents, info.num_validation) == (120, len(rows))
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["division"]["kind"] == "rows"
    assert manifest["corpus"]["sources"]["train"]["files"] == 3


@pytest.mark.parametrize(
    "vocabulary", [TokenizerConfig(kind="gpt2"), TokenizerConfig(model_type="char", vocab_size=64)]
)
def test_a_record_separator_in_a_text_is_kept(vocabulary, write_jsonl, tmp_path):
    """It ends the prompt of a pair and is a character like any other elsewhere. Oracle: the texts."""
    texts = [f"text {number} has \x1e one" + " and \x1e two" * (number % 2) for number in range(40)]
    config = DataConfig(corpus=str(write_jsonl(texts)), length=4, num_shards=1)
    prepare(config, vocabulary, tmp_path / "data", tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["documents"] == 38
    for split in ("train", "validation"):
        stream = _sequences(tmp_path / "data", split).ravel()
        read = tokenizer.decode(stream, separator="|").split("|")[:-1]
        assert read
        assert set(read) <= set(texts)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Thirty pairs, and the file that holds them; the first has an empty prompt."""
    rows = [("ask " * (i % 3), f"answer number {i}") for i in range(30)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = (json.dumps({"prompt": prompt, "completion": text}) for prompt, text in rows)
    path.write_text("\n".join(lines), "utf-8")
    return rows, path


def test_prompts_and_completions_fill_sequences_of_their_own(pairs, tmp_path):
    """Oracle: each pair by hand, `prompt BOS completion EOS` and EOS to the end."""
    rows, path = pairs
    fields = {"text_field": "prompt>completion", "sequences": "prompted", "length": 26}
    config, chars = DataConfig(str(path), **fields), TokenizerConfig(model_type="char")
    info = prepare(config, chars, tmp_path / "data", tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    expected = []
    for prompt, text in rows:
        ids = [*tokenizer.encode_part(prompt), tokenizer.bos_id, *tokenizer.encode_part(text)]
        expected.append([*ids, *26 * [tokenizer.eos_id]][:26])
    found = [
        row for split in ("train", "validation") for row in _sequences(tmp_path / "data", split)
    ]
    assert sorted(map(list, found)) == sorted(expected)
    assert info.num_train + info.num_validation == 30
    short = dataclasses.replace(config, length=25, skip_bad=6)
    where = tmp_path / "short", tmp_path / "short_tokenizer"
    message = r"pairs\.jsonl: The prompt 'ask ask ' .* have 26 tokens .* more than data\.length=25.*only 6"
    with pytest.raises(DataError, match=message):
        prepare(short, chars, *where)
    info = prepare(dataclasses.replace(short, skip_bad=7), chars, *where)
    assert info.num_train + info.num_validation == info.num_documents == 30 - 7
    assert (
        json.loads((where[0] / "manifest.json").read_text())["taken_away"]["bad: pair too long"]
        == 7
    )


def test_a_completion_outside_the_vocabulary_is_unknown_tokens(tmp_path):
    """It used to stop the preparation, with no place named. Oracle: the ids of the one pair."""
    rows = [{"prompt": f"how are you {i}", "completion": f"fine {i}"} for i in range(60)]
    # Held out, since it has the smallest digest, and so not among what the vocabulary is learned from.
    smallest = min(digest(f"{row['prompt']}\x1e{row['completion']}") for row in rows)
    odd = next(n for n in range(10**6) if digest(f"how are {n}\x1e\U0001f600") < smallest)
    rows.append({"prompt": f"how are {odd}", "completion": "\U0001f600"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    config = DataConfig(str(path), text_field="prompt>completion", sequences="prompted", length=32)
    chars = TokenizerConfig(model_type="char", vocab_size=100)
    info = prepare(config, chars, tmp_path / "data", tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert info.num_unknown == 1
    ids = [*tokenizer.encode(f"how are {odd}"), tokenizer.bos_id, tokenizer.unk_id]
    expected = [*ids, *32 * [tokenizer.eos_id]][:32]
    assert expected in _sequences(tmp_path / "data", "validation").tolist()


def test_pairs_that_spell_special_tokens_are_refused_or_skipped(tmp_path):
    """A chat template ends its turns with the token that is both BOS and EOS. Oracle: the other pairs."""
    names = ["[UNK]", "ask", "answer", *(f"n{number}" for number in range(30))]
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: id for id, name in enumerate(names)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<|im_end|>"])
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    prompts = [f"ask {name}" + " <|im_end|>" * (i in (7, 21)) for i, name in enumerate(names[3:])]
    rows = [
        {"prompt": prompt, "completion": f"answer {name}"}
        for prompt, name in zip(prompts, names[3:], strict=True)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    fields = {"text_field": "prompt>completion", "sequences": "prompted", "length": 8}
    config = DataConfig(str(path), **fields, skip_bad=1)
    vocabulary = TokenizerConfig(kind="file", file=str(tmp_path / "tokenizer.json"))
    where = tmp_path / "data", tmp_path / "tokenizer"
    with pytest.raises(DataError, match=r"spells BOS.* number 2, but data\.skip_bad allows only 1"):
        prepare(config, vocabulary, *where)
    info = prepare(dataclasses.replace(config, skip_bad=2), vocabulary, *where)
    assert info.num_train + info.num_validation == info.num_documents == 28
    manifest = json.loads((where[0] / "manifest.json").read_text())
    assert manifest["taken_away"]["bad: BOS or EOS in a pair"] == 2
    assert "'ask n7 <|im_end|>'" in manifest["bad_input"]["BOS or EOS in a pair"][0]
    found = [row for split in ("train", "validation") for row in _sequences(where[0], split)]
    end = len(names)
    kept = [i for i in range(30) if i not in (7, 21)]
    expected = [[1, 3 + i, end, 2, 3 + i, end, end, end] for i in kept]
    assert sorted(map(list, found)) == expected


def test_padded_documents_fill_sequences_of_their_own(prepared, tmp_path):
    """Oracle: each document by hand, followed by EOS until it fills whole sequences.

    Two of them fill theirs; they used to add a sequence of nothing but EOS, an empty text.
    """
    _prepare(prepared, tmp_path, sequences="padded")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    stream, full = [], 0
    for text in divide(prepared.data_config, tmp_path / "index")("train"):
        ids = list(tokenizer.encode(text))
        full += len(ids) % 16 == 0
        stream += ids + -len(ids) % 16 * [tokenizer.eos_id]
    assert full == 2
    np.testing.assert_array_equal(_sequences(tmp_path / "data", "train").ravel(), stream)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequences": "prompted"}, "prompt>completion"),
        ({"text_field": "a>b"}, "go together"),
        ({"sequences": "prompted", "text_field": "a>b", "normalize": "text8"}, "as they are"),
        ({"sequences": "padded", "wrap": True}, "wrap=True"),
    ],
)
def test_sequences_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**fields)
