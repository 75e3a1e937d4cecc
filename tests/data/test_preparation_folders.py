"""Where a preparation writes: links, and two of them at once. Oracle: the folders of one by itself."""

import dataclasses
import itertools
import threading
import unittest.mock

import pytest

from sdtt_jax.data import TokenizerConfig, prepare
from sdtt_jax.data.tokenizer import save_tokenizer
from sdtt_jax.errors import ConfigError


def _contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _prepare(prepared, run, name="data"):
    return prepare(prepared.data_config, prepared.tokenizer_config, run / name, run / "tokenizer")


@pytest.mark.parametrize("made", [True, False])
def test_links_are_followed_and_stay(prepared, tmp_path, made):
    """To an empty folder, or to one that is not there yet. After all the work it was an error of Python."""
    run, disk = tmp_path / "run", tmp_path / "disk"
    run.mkdir()
    for name in ("data", "tokenizer"):
        (run / name).symlink_to(disk / name)
        if made:
            (disk / name).mkdir(parents=True)
    for _ in range(2):
        assert _prepare(prepared, run) == prepared.info
        assert all((run / name).is_symlink() for name in ("data", "tokenizer"))
        assert sorted(path.name for path in [*run.iterdir(), *disk.iterdir()]) == [
            *["data"] * 2,
            *["tokenizer"] * 2,
        ]
    assert _contents(disk / "data") == _contents(prepared.data)
    assert _contents(disk / "tokenizer") == _contents(prepared.tokenizer)


@pytest.mark.parametrize(
    ("data", "tokenizer"),
    [("one", "one"), ("data", "data/tokenizer"), ("tokenizer/data", "tokenizer")],
)
def test_one_folder_within_the_other_is_refused(prepared, tmp_path, data, tokenizer):
    """The same folder waited for itself for ever; others failed when renamed, after all the work."""
    configs = prepared.data_config, prepared.tokenizer_config
    with pytest.raises(ConfigError, match=r"must be two folders, neither within the other"):
        prepare(*configs, tmp_path / data, tmp_path / tokenizer)
    assert not [*tmp_path.rglob("*.json")]


def test_the_working_directory_is_not_replaced(prepared, tmp_path, monkeypatch):
    """It ended in a ValueError, and given in full it left the shell in a folder that was gone."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    for given in (".", tmp_path / "data"):
        with pytest.raises(ConfigError, match="must not be the working directory"):
            prepare(prepared.data_config, prepared.tokenizer_config, given, tmp_path / "x")
    monkeypatch.chdir(prepared.data)
    configs = prepared.data_config, prepared.tokenizer_config
    assert prepare(*configs, ".", prepared.tokenizer) == prepared.info


@pytest.mark.parametrize(("saved", "other"), [(1, "data"), (2, "more")], ids=["same", "shared"])
def test_of_two_preparations_at_once_one_waits(prepared, tmp_path, monkeypatch, saved, other):
    """The second begins when the first is about to save its vocabulary, aside (1) or as the result (2).

    It prepares the same folder, or other data with the same tokenizer's. One removed what the other wrote.
    """
    found, saves = [], itertools.count(1)
    second = threading.Thread(target=lambda: found.append(_prepare(prepared, tmp_path, other)))

    def save(tokenizer, folder):
        if next(saves) == saved:
            second.start()
            second.join(0.5)
        save_tokenizer(tokenizer, folder)

    monkeypatch.setattr("sdtt_jax.data.preparation.save_tokenizer", save)
    assert _prepare(prepared, tmp_path) == prepared.info
    second.join()
    assert found == [prepared.info]
    for name in ("data", other):
        assert _contents(tmp_path / name) == _contents(prepared.data)
    assert _contents(tmp_path / "tokenizer") == _contents(prepared.tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "tokenizer", other}


def test_the_plan_of_gpt2s_vocabulary_names_no_tokenizer(prepared, tmp_path, monkeypatch):
    """As in plans of earlier versions: what they have begun would begin anew."""
    stop = unittest.mock.Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr("sdtt_jax.data.preparation._continue", stop)
    config = dataclasses.replace(prepared.data_config, normalize="none")
    with pytest.raises(KeyboardInterrupt):
        prepare(config, TokenizerConfig(kind="gpt2"), tmp_path / "data", tmp_path / "tokenizer")
    assert stop.call_args.args[-1]["given"] is None
