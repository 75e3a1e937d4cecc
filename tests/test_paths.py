"""Paths that users give, and writing files whole. Oracles: a home; what was written."""

import concurrent.futures
import json
import os
import subprocess
import sys
import time

import pytest

from experiments.cli.app import output_file, parse_flags
from experiments.cli.arguments import config_files, require_utf8
from experiments.settings import check_overrides
from sdtt_jax.data import DataConfig, DataInfo, load_tokenizer, train_tokenizer
from sdtt_jax.data.config import TokenizerConfig
from sdtt_jax.data.corpora import documents
from sdtt_jax.data.tokenizer import save_tokenizer
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.record import Record
from sdtt_jax.evaluation.tasks import read_task
from sdtt_jax.evaluation.texts import read_texts
from sdtt_jax.formats import read_json, write_json
from sdtt_jax.paths import absolute, as_path, file_lock, remove_tree, written_whole


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory, beside a working directory in which nothing must appear."""
    place, here = tmp_path / "home", tmp_path / "here"
    place.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(here)
    yield place
    assert [path.name for path in here.iterdir()] == []


def test_a_tilde_is_the_home_and_nothing_else_is(home, tmp_path):
    assert as_path("~") == home
    assert as_path("~/runs/x") == absolute("~/runs/x") == home / "runs" / "x"
    assert as_path(home / "~" / "x") == home / "~" / "x"
    assert os.fspath(as_path("a~/~b")) == "a~/~b"
    # A name that begins with a tilde stays itself, however often it goes through `as_path`.
    named = tmp_path / "here" / "~x"
    assert as_path(as_path("./~x")) == named
    # The superuser has a home on every machine.
    assert as_path("~root/x") == as_path("~root") / "x" != "~root/x"
    with pytest.raises(
        ConfigError, match=r"~nobody-here/x: there is no home directory ~nobody-here"
    ):
        as_path("~nobody-here/x")


def test_a_bucket_has_no_homes(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    assert os.fspath(as_path("gs://bucket/~/x")) == "gs://bucket/~/x"
    with pytest.raises(ConfigError, match="file:// is not known"):
        as_path("file://~/x")


def test_every_door_takes_a_tilde(home):
    """The library's readers and writers, the flags and the config fields; nothing goes to `./~`."""
    (home / "x.jsonl").write_text('{"text": "a b"}\n', "utf-8")
    assert list(documents(DataConfig("~/x.jsonl"))) == ["a b"]
    assert read_task("lambada", "~/x.jsonl")[0].suffix == " b"
    tokenizer = train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    assert len(list(read_texts("~/x.jsonl", tokenizer, tokenizer.vocab_size))) == 1
    (home / "tokenizer").mkdir()
    save_tokenizer(tokenizer, "~/tokenizer")
    assert load_tokenizer("~/tokenizer").digest == tokenizer.digest
    write_json("~/new/y.json", {"a": 1})
    assert read_json("~/new/y.json") == {"a": 1}
    assert Record("~/r.json", {"digest": "0"}).path == home / "r.json"
    assert output_file("~/out/z.json") == home / "out" / "z.json"
    assert (home / "out").is_dir()


def test_config_files_are_named_like_all_files(home):
    (home / "c.py").write_text("def get_config():\n    return {}\n", "utf-8")
    given = ["run", "--config=~/c.py", "-spec", "~/c.py", "--prompt=~/c.py", "~/c.py"]
    expanded = [*given[:1], f"--config={home}/c.py", "-spec", f"{home}/c.py", *given[4:]]
    assert config_files(given) == expanded
    check_overrides(given[:2])


def test_of_several_config_files_the_last_one_counts():
    """A script gives one and its caller another; what follows `--` is another program's."""
    given = ["run", "--config=a", "--workdir=x", "-config", "b", "--config.seed=1", "--config", "c"]
    assert config_files(given) == ["run", "--workdir=x", "--config.seed=1", "--config", "c"]
    assert config_files([*given[:2], "--", *given]) == [*given[:2], "--", *given]


def test_what_a_file_of_flags_holds_is_checked_like_the_command_line(tmp_path, capsys):
    (tmp_path / "flags").write_text("--config.model={}\n")
    with pytest.raises(SystemExit) as stop:
        parse_flags(["run", f"--flagfile={tmp_path}/flags"], check_overrides)
    assert stop.value.code == 2
    assert "config.model is a group of fields" in capsys.readouterr().err


def test_a_command_line_that_is_no_text_ends_in_one_line(capsys):
    """Linux allows bytes there that are not UTF-8; Python turns them into halves of surrogate pairs."""
    for given in (["--prompt=a\udcff"], ["--prompt", "a\udcff"]):
        with pytest.raises(SystemExit) as stop:
            parse_flags(["sample", *given], None)
        assert stop.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "--prompt is not UTF-8 (b'a\\xff')" in line


@pytest.mark.parametrize("read", ["caf\udcc3\udca9", "cafÃ©"])
def test_utf_8_that_a_locale_of_another_encoding_misreads_is_not_to_be_given_in_utf_8(
    capsys, monkeypatch, read
):
    """ASCII said so. Latin-1 took it for "cafÃ©" without a word. Oracle: the bytes that are typed."""
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("latin-1", "surrogateescape"))
    with pytest.raises(SystemExit):
        parse_flags(["sample", f"--prompt={read}"], None)
    assert "--prompt is UTF-8, which this" in (said := capsys.readouterr().err)
    assert "set PYTHONUTF8=1" in said
    require_utf8(["sample", "--prompt=caf\xe9"])  # in Latin-1


def test_a_file_is_in_its_place_when_it_is_whole_and_not_before(tmp_path):
    path = tmp_path / "folder" / "x"
    with pytest.raises(ZeroDivisionError), written_whole(path) as file:
        file.write_text("half" * (1 // (file.write_text("half") - 4)))
    assert list(path.parent.iterdir()) == []
    with written_whole(path) as file:
        file.write_text("whole")
        assert not path.exists()
    assert [found.read_text() for found in path.parent.iterdir()] == ["whole"]
    remove_tree(path.parent)
    remove_tree(path.parent)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Oracle: the order of the system calls; in the other order, a power cut could leave an empty file."""
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    write_json(tmp_path / "x.json", {})
    assert calls == ["fsync", "replace"]


def test_two_that_write_one_file_leave_one_of_theirs(tmp_path):
    """Both used to write the same temporary file, and a reader saw half of one beside half of the other."""
    path, seen = tmp_path / "x.json", []

    def write(number):
        for _ in range(100):
            write_json(path, [number] * 1000)
            seen.append(set(json.loads(path.read_text())))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (1, 2)))
    assert all(found in ({1}, {2}) for found in seen)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


KILLED = """
import os, sys
from sdtt_jax.paths import written_whole
with written_whole(sys.argv[1]) as file:
    file.write_text("half")
    os._exit(9)
"""


def test_what_a_killed_writer_left_goes_and_what_another_writes_stays(tmp_path):
    """Each `kill -9` left a hidden file, as large as what was written. Oracle: who is still writing."""
    path = tmp_path / "x[1].json"
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    [left] = tmp_path.iterdir()
    mine = tmp_path / ".x[1].json.mine"
    with written_whole(path) as alive:
        mine.touch()
        for old in (left, alive, mine):
            os.utime(old, (time.time() - 60,) * 2)
        write_json(path, {"a": 1})
        assert sorted(tmp_path.iterdir()) == sorted([alive, mine, path])
        alive.write_text('{"a": 2}')
    assert sorted(tmp_path.iterdir()) == [mine, path]
    assert read_json(path) == {"a": 2}


def test_of_those_that_read_a_file_and_write_it_again_none_is_forgotten(tmp_path):
    """Oracle: a count. Without `file_lock`, two read the same number, and one addition is lost."""
    path = tmp_path / "x.json"
    write_json(path, {"count": 0})

    def add(_):
        for _ in range(25):
            with file_lock(path):
                write_json(path, {"count": read_json(path)["count"] + 1})

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    assert read_json(path) == {"count": 100}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_the_working_directory_has_a_lock_too(tmp_path, monkeypatch):
    """It ended in a ValueError about an empty name. Oracle: what is beside it."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for inside, given in (("a", "."), ("a/b", "..")):
        monkeypatch.chdir(tmp_path / inside)
        with file_lock(given):
            assert [entry.name for entry in tmp_path.glob(".*")] == [".a.lock"]


def test_an_info_written_before_files_were_counted_is_read():
    facts = dict.fromkeys(DataInfo.__dataclass_fields__, 1)
    del facts["files"]
    assert DataInfo(**facts).files == ""
