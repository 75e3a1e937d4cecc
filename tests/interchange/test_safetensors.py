"""Safetensors files in and out."""

import os
import stat
import subprocess
import sys
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import sdtt_jax
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange.safetensors import Tensors, write_tensors
from tests.interchange.llama_models import repository


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    tensors = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.array([1.5, -0.0, 2.0**-133], ml_dtypes.bfloat16),
    }
    write_tensors(tmp_path / "model.safetensors", tensors)
    back = Tensors(tmp_path / "model.safetensors")
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == np.ascontiguousarray(array).tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


KILLED = """
import os, pathlib, sys
from sdtt_jax.interchange import safetensors
def save_file(tensors, path, metadata):
    pathlib.Path(path).with_name(".tmpAbCdEf").write_bytes(bytes(100))
    os._exit(9)
safetensors.save_file = save_file
safetensors.write_tensors(sys.argv[1], {})
"""


def test_what_the_library_left_when_it_was_killed_goes_with_the_next_writing(tmp_path):
    """A hidden file as large as the model stayed. Oracle: its name, by a stand-in for the library."""
    path = tmp_path / "m" / "model.safetensors"
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert [left.name for left in tmp_path.rglob(".tmp*")] == [".tmpAbCdEf"]
    path.with_name(".tmpother").touch()  # another program's
    for left in path.parent.glob(".model.*"):
        os.utime(left, (time.time() - 60,) * 2)
    write_tensors(path, {"a": np.ones(2, np.float32)})
    assert sorted(left.name for left in path.parent.iterdir()) == [".tmpother", path.name]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors cannot be read"):
        Tensors(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    write_tensors(path, {"a": np.ones((4, 4), np.float32)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors cannot be read as safetensors"):
        Tensors(path)


@pytest.mark.parametrize("change", [-3, 5])
def test_a_file_of_another_length_says_both(tmp_path, change):
    path = tmp_path / "cut.safetensors"
    write_tensors(path, {"a": np.ones((4, 4), np.float32), "b": np.ones(2, np.float32)})
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"x" * change)
    said = f"has {len(content) + change} bytes, but its header counts {len(content)};"
    with pytest.raises(CheckpointError, match=said):
        Tensors(path)


def test_a_renamed_pickle_is_not_read_whole(tmp_path):
    """Its first bytes are a length without end, and all its 16 GB were read. Oracle: Python's memory."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04" * 4)
        file.truncate(4 * 10**8)  # takes no room on the disk
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as safetensors"):
        Tensors(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * 10**8


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_says_who_may_read_a_file(tmp_path, umask):
    """Oracle: a file that Python opens; files of the safetensors library are their owner's alone."""
    before = os.umask(umask)
    try:
        (tmp_path / "plain").write_bytes(b"")
        for _ in range(2):
            write_tensors(tmp_path / "model.safetensors", {"a": np.ones(2, np.float32)})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("plain", "model.safetensors"), 0o666 & ~umask)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"a": ""}}', "outside its folder"),
        ('{"weight_map": {"a": "."}}', "outside its folder"),
        (
            '{"weight_map": {"a": "model.safetensors", "b": "b.safetensors"}}',
            r"names 2 files, of which b\.safetensors is not beside it",
        ),
        ('{"weight_map": {"a": "model.safetensors"}}', "says that a is in model.safetensors"),
    ],
)
def test_a_damaged_index_is_one_sentence(tmp_path, index, said):
    file = repository(tmp_path / "m", "llama") / "other.safetensors.index.json"
    file.write_text(index)
    with pytest.raises(CheckpointError, match=said):
        sdtt_jax.load(file)
