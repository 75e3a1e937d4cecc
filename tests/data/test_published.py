"""Published corpora. Oracles: small files in the hub's format, the detokenizers on their own."""

import io
import itertools
import json
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from sdtt_jax.data import DETOKENIZERS, DataConfig
from sdtt_jax.data.corpora import documents, find_corpus, recipe
from sdtt_jax.data.reading import BadInputError
from sdtt_jax.errors import ConfigError, DataError

TEXTS = ["the company 's shares rose N %", " ", "it is n't so"]


def write_parquet(path, field):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({field: TEXTS}), path)


def test_a_folder_may_hold_json_lines_raw_text_or_a_folder_of_files(tmp_path):
    lines = tmp_path / "test.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    (tmp_path / "train").mkdir()
    write_parquet(tmp_path / "train" / "0000.parquet", "text")
    (tmp_path / "validation.txt").write_text("a well @-@ known thing", "utf-8")
    test, train, validation = (
        list(documents(DataConfig("wikitext2"), split, tmp_path))
        for split in ("test", "train", "validation")
    )
    assert test == train
    assert validation == ["a well-known thing"]


def test_the_hubs_copy_is_asked_for_the_split_only(tmp_path, monkeypatch):
    asked = []

    def download(repo, *, repo_type, revision, allow_patterns):
        asked.append((repo, repo_type, revision, allow_patterns))
        write_parquet(tmp_path / "penn_treebank" / "test" / "0000.parquet", "sentence")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert len(list(documents(DataConfig("ptb"), "test"))) == 2
    assert asked == [
        (
            "ptb-text-only/ptb_text_only",
            "dataset",
            "refs/convert/parquet",
            ["penn_treebank/test/*.parquet"],
        )
    ]


class Hub:
    """A hub whose files are on this disk, and which counts the bytes that are read."""

    ROOT = "datasets/Skylion007/openwebtext@c0ffee"

    def __init__(self, folder):
        self.folder, self.bytes = folder, 0

    def _local(self, path):
        return self.folder / path.removeprefix("hf://").removeprefix(self.ROOT + "/")

    def info(self, path):
        return {"size": self._local(path).stat().st_size}

    def glob(self, path):
        found = self.folder.glob(path.removeprefix(self.ROOT + "/"))
        return [f"{self.ROOT}/{each.relative_to(self.folder)}" for each in found]

    def open(self, path, mode):
        hub = self

        class Counted(io.FileIO):
            def readinto(self, buffer):
                count = super().readinto(buffer)
                hub.bytes += count
                return count

        return Counted(self._local(path), mode)


def test_large_corpora_are_streamed_and_not_stored(tmp_path, monkeypatch):
    """At the branch's commit, reading only the text column of Parquet files. Oracle: what was written."""
    hub = Hub(tmp_path / "hub")
    folder = tmp_path / "hub" / "plain_text"
    folder.mkdir(parents=True)
    other = np.random.default_rng(0).bytes(10**6).hex()
    for number in range(2):
        texts = [f"page {number} {row}" for row in range(8)]
        columns = {"other": [other + text for text in texts], "text": texts}
        path = folder / f"train-{number:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    found = mock.Mock(sha="c0ffee")
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda *_, **__: found)
    monkeypatch.setattr("huggingface_hub.HfFileSystem", lambda: hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr("sdtt_jax.data.reading.PART_BYTES", 1)
    parts = find_corpus("openwebtext").parts("train")
    assert len(parts) == 6
    assert {part.pieces[0].path for part in parts} == {
        f"hf://{Hub.ROOT}/plain_text/train-0000{number}-of-00002.parquet" for number in range(2)
    }
    expected = [f"page {number} {row}" for number in range(2) for row in range(8)]
    assert list(documents(DataConfig("openwebtext"))) == expected
    assert hub.bytes < 0.1 * sum(path.stat().st_size for path in folder.iterdir())


def test_a_network_that_fails_is_no_bad_input(tmp_path, monkeypatch):
    """Otherwise `skip_bad` would count it, and the rest of the file would be silently lost."""
    hub, calls = Hub(tmp_path), itertools.count()  # four reads: two of the footer, two of the texts
    (tmp_path / "plain_text").mkdir()
    path = tmp_path / "plain_text" / "train-00000-of-00001.parquet"
    rng = np.random.default_rng(0)
    texts = [rng.bytes(500).hex() for _ in range(3000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=100)

    class Lost(io.FileIO):
        def readinto(self, buffer):
            if next(calls) == 3:
                raise ConnectionResetError("the line is dead")
            return super().readinto(buffer)

    monkeypatch.setattr(hub, "open", lambda name, mode: Lost(hub._local(name), mode))
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda *_, **__: mock.Mock(sha="c0ffee"))
    monkeypatch.setattr("huggingface_hub.HfFileSystem", lambda: hub)
    message = r"00001\.parquet cannot be reached: the line is dead\. Run the same command again"
    with pytest.raises(DataError, match=message) as error:
        list(documents(DataConfig("openwebtext", skip_bad=9)))
    assert not isinstance(error.value, BadInputError)


def test_without_a_network_the_message_says_which_files_to_fetch(tmp_path, monkeypatch):
    class ConnectError(Exception):
        """An HTTP client's error, of none of Python's own classes."""

    for error in (OSError("no route"), ConnectError("no route")):
        download = mock.Mock(side_effect=error)
        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        message = (
            r"\(no route\).*penn_treebank/test/\*.*into a folder ptb/test/.*\$SDTT_JAX_CORPORA"
        )
        with pytest.raises(DataError, match=message):
            list(documents(DataConfig("ptb"), "test"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", mock.Mock(return_value=str(tmp_path)))
    with pytest.raises(DataError, match=r"has no penn_treebank/test/\*\.parquet"):
        list(documents(DataConfig("ptb"), "test"))


def test_a_split_that_a_folder_lacks_is_named_with_the_files_to_put_there(tmp_path):
    with pytest.raises(
        ConfigError, match=r"put one of test\.txt, test\.jsonl, test\.parquet, test"
    ):
        list(documents(DataConfig("ptb"), "test", tmp_path))


@pytest.mark.parametrize("names", ["train.txt, train.TXT, train", "train.parquet, train.jsonl.gz"])
def test_a_split_that_a_folder_holds_twice_is_refused(tmp_path, names):
    """A first part in train.jsonl used to be all that was read, whatever there was in train/."""
    for name in names.split(", "):
        write_parquet(tmp_path / name / "0000.parquet", "text")
    message = f"train split of wikitext2 several times .*{names.rpartition(' ')[2]}.; leave one"
    with pytest.raises(ConfigError, match=message):
        list(documents(DataConfig("wikitext2"), "train", tmp_path))


@pytest.mark.parametrize("name", ["text8", "world_english_bible"])
def test_a_named_corpus_has_a_field_of_its_own(name):
    """The field of the config used to be left out in silence, or in an error that asked to set it."""
    with pytest.raises(ConfigError, match=f"'content' is for files of your own, but {name}"):
        next(documents(DataConfig(name, text_field="content")))
    assert (
        recipe(DataConfig("arxiv", text_field="article"), find_corpus("arxiv")).fields.text
        == "article"
    )


def test_the_shared_folder_of_corpora_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("SDTT_JAX_CORPORA", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", mock.Mock(side_effect=AssertionError))
    write_parquet(tmp_path / "openwebtext" / "train" / "0000.parquet", "text")
    assert len(list(documents(DataConfig("openwebtext")))) == 2


class Lm1b(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """`TEXTS` as TFDS prepares them."""

    VERSION = tfds.core.Version("1.1.0")
    pkg_dir_path = None

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate({"text": text} for text in TEXTS)


class TestTfds:
    """Oracle: the same texts, written by a TFDS builder."""

    @pytest.fixture
    def prepared(self, tmp_path, monkeypatch):
        """A version folder as TFDS leaves it."""
        builder = Lm1b(data_dir=tmp_path, file_format="array_record")
        builder.download_and_prepare()
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        return tmp_path / "lm1b" / "1.1.0"

    def test_what_is_prepared_on_this_machine_is_read(self, prepared):
        undo = DETOKENIZERS["lm1b"]
        expected = [undo(TEXTS[0]), undo(TEXTS[2])]
        assert list(documents(DataConfig("lm1b"), "test")) == expected
        assert list(documents(DataConfig("lm1b"), "test", prepared)) == expected

    def test_many_records_are_read_at_once(self, prepared, monkeypatch):
        """Each read goes through the index of a whole shard. Oracle: two calls for records 0-1 and 2."""
        reads, read = [], ArrayRecordDataSource.__getitems__

        def counted(source, indices):
            reads.append(list(indices))
            return read(source, indices)

        monkeypatch.setattr(ArrayRecordDataSource, "__getitems__", counted)
        monkeypatch.setattr(ArrayRecordDataSource, "__getitem__", mock.Mock(side_effect=IndexError))
        monkeypatch.setattr("sdtt_jax.data.published._RECORDS_AT_ONCE", 2)
        assert len(list(documents(DataConfig("lm1b"), "test", prepared))) == 2
        assert reads == [[0, 1], [2]]

    @pytest.mark.parametrize("name", ["lm1b-test*", "dataset_info.json", "features.json"])
    def test_what_is_damaged_is_named(self, prepared, name):
        """It was a traceback of TFDS or ArrayRecord, without the folder."""
        [path] = prepared.glob(name)
        path.write_bytes(b"{")
        message = r"lm1b/1.1.0 cannot be read by TFDS \(.*prepare the set"
        with pytest.raises(DataError, match=message):
            list(documents(DataConfig("lm1b"), "test", prepared))

    def test_the_newest_version_is_taken(self, prepared):
        for name in ("1.0.0", "1.0.10", "1.1.0.old", "incomplete.ABC_1.1.0"):
            (prepared.parent / name).mkdir()
            (prepared.parent / name / "dataset_info.json").write_text("{}")
        assert len(list(documents(DataConfig("lm1b"), "test"))) == 2

    def test_a_split_that_was_not_prepared_is_named(self, prepared):
        with pytest.raises(DataError, match=r"1.1.0 has no split 'train' with a feature 'text'"):
            next(documents(DataConfig("lm1b"), "train"))
        assert prepared.is_dir()
