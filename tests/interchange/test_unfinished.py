"""Folders that are filled or not. Oracles: their files; a process that ends as `kill -9` ends it."""

import errno
import os
import subprocess
import sys

import pytest

from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.unfinished import UNFINISHED, filled_whole, require_empty
from sdtt_jax.locks import locked

KILLED = """
import os, sys, pathlib
from sdtt_jax.interchange.unfinished import filled_whole
folder = pathlib.Path(sys.argv[1])
with filled_whole(folder):
    (folder / "final.orbax-checkpoint-tmp").mkdir()
    (folder / ".model.safetensors.0a1b2c3d").touch()
    os._exit(9)
"""


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_killed_process_leaves_what_the_next_one_removes(tmp_path):
    """The same command was refused. An unfinished name of `written_whole` stayed for ever."""
    folder = tmp_path / "x"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert killed.returncode == 9
    assert len(names(folder)) == 3
    with filled_whole(folder):
        assert names(folder) == [UNFINISHED]
        (folder / "whole").touch()
    assert names(folder) == ["whole"]
    with pytest.raises(ConfigError, match="not an empty folder"), filled_whole(folder):
        pass
    assert names(folder) == ["whole"]


def test_a_block_that_fails_can_be_repeated(tmp_path):
    """Also where threads of its own write after it, as Orbax's do after Ctrl-C: the command was refused."""
    folder = tmp_path / "x"

    @filled_whole(folder)
    def export():
        (folder / "final.orbax-checkpoint-tmp" / "a").mkdir(parents=True)
        (folder / "model.safetensors").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: '.*/x'"):
        export()
    assert names(folder) == [UNFINISHED]
    (folder / "of a thread").touch()
    require_empty(folder)
    with filled_whole(folder):
        (folder / "kept").touch()
    assert names(folder) == ["kept"]


def test_one_that_another_has_filled_in_the_meantime_is_left_alone(tmp_path, monkeypatch):
    """Both found it empty. Oracle: the folder of the first."""
    folder = tmp_path / "x"

    def other_first(marker):
        (folder / "whole").touch()
        return locked(marker)

    monkeypatch.setattr("sdtt_jax.interchange.unfinished.locked", other_first)
    with pytest.raises(ConfigError, match="not an empty folder"), filled_whole(folder):
        pass
    assert names(folder) == ["whole"]


def test_a_loop_of_links_is_no_empty_folder(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="not an empty folder"):
        require_empty(tmp_path / "a")
