"""Results where a user wants them. Oracles: what a shell's `>` does there, and the system's answers."""

import errno
import os
import threading

import pytest

from experiments.cli.app import output_file
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.evaluation.record import Record
from sdtt_jax.formats import read_json, write_json
from sdtt_jax.paths import file_lock


def written(path):
    """Writes to a path as commands do: checked first, and written at the end."""
    write_json(output_file(str(path)), {"new": 1})


def test_a_symbolic_link_stays_one_and_what_it_leads_to_is_written(tmp_path):
    """Relative or absolute, one after the other, and also to a file that is not there yet."""
    (tmp_path / "real").mkdir()
    write_json(tmp_path / "real" / "x.json", "old")
    (tmp_path / "one").symlink_to("real/x.json")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "new").symlink_to("later/y.json")
    (tmp_path / "folder").symlink_to("real")
    for link, target in (("two", "real/x.json"), ("new", "later/y.json"), ("folder/z", "real/z")):
        written(tmp_path / link)
        assert read_json(tmp_path / target) == {"new": 1}
    assert all((tmp_path / name).is_symlink() for name in ("one", "two", "new", "folder"))
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["x.json", "z"]


@pytest.mark.parametrize("name", ["a", "a/x.json", "gone/x.json"])
def test_links_that_lead_nowhere_are_refused_before_any_work(tmp_path, name):
    """A loop was found at the end, or replaced. A shell refuses it, too: too many levels of links."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"is a link to .*, which leads nowhere"):
        output_file(str(tmp_path / name))
    with pytest.raises(DataError, match=r"is a link to .*, which leads nowhere"):
        write_json(tmp_path / name, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "gone"]


def test_whoever_comes_through_a_link_waits_for_the_others(tmp_path):
    (tmp_path / "link").symlink_to("x.json")
    with file_lock(tmp_path / "link"):
        assert [path.name for path in tmp_path.glob(".*")] == [".x.json.lock"]


def test_what_reads_a_pipe_gets_the_result_and_the_pipe_stays(tmp_path):
    path, found = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: found.append(path.read_text()), daemon=True)
    reader.start()
    written(path)
    reader.join(10)
    assert found == ['{\n  "new": 1\n}\n']
    assert path.is_fifo()


@pytest.mark.parametrize("name", ["/dev/fd", "/proc/self/fd"])
def test_an_open_file_keeps_its_place(tmp_path, name):
    """As with `--output=/dev/stdout > file`: replaced, the file would lose what is printed later."""
    with (tmp_path / "x").open("w") as file:
        written(f"{name}/{file.fileno()}")
        assert os.path.samestat(os.fstat(file.fileno()), (tmp_path / "x").stat())
    assert read_json(tmp_path / "x") == {"new": 1}


def test_a_file_that_cannot_be_replaced_is_written_to(tmp_path, monkeypatch):
    """One that is mounted alone into a container, whose folder is not writable, or which is busy.

    The system's answers are made up: whoever runs this may be root, who may write anywhere.
    """
    path = tmp_path / "x.json"
    for number in (errno.EBUSY, errno.EPERM):
        path.write_text("old")

        def refused(*_, number=number):
            raise OSError(number, os.strerror(number))

        before = path.stat()
        with monkeypatch.context() as system:
            system.setattr(os, "replace", refused)
            written(path)
        assert os.path.samestat(before, path.stat())
        assert read_json(path) == {"new": 1}
        assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda found, mode: found != tmp_path or mode != os.W_OK)
    monkeypatch.setattr(os, "replace", None)
    written(path)
    assert read_json(path) == {"new": 1}
    with pytest.raises(ConfigError, match="permission denied"):
        written(tmp_path / "y.json")


def test_results_that_grow_are_not_kept_in_a_pipe(tmp_path):
    """It would be read first, and that would not end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"pipe is a device or a pipe, which keeps no results"):
        Record(tmp_path / "pipe", {"path": "a model", "digest": "0"})
