"""A local copy of what cannot be read from a bucket: ArrayRecord shards and the tokenizer.

Process 0 prepares them on its disk and uploads them; every other host downloads them once. A folder is
complete once the file that is copied last is there.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sdtt_jax.data.records import INFO_FILE
from sdtt_jax.errors import ConfigError
from sdtt_jax.model.base import Loaded
from sdtt_jax.paths import as_path, entries, file_lock, home, is_remote

CACHE = "SDTT_JAX_CACHE"


def local_root(root: Path) -> Path:
    """The place of the local copy of a run's directory: in `$SDTT_JAX_CACHE`, or else in ~/.cache/sdtt_jax.

    Without that variable and a home directory there is none: `ConfigError`.
    """
    if not is_remote(root):
        return root
    here = home()
    cache = os.environ.get(CACHE) or (here and here / ".cache" / "sdtt_jax")
    if not cache:
        raise ConfigError(
            f"There is no home directory for a local copy of {root}; set ${CACHE} to a folder."
        )
    return as_path(cache) / hashlib.sha256(os.fspath(root).encode()).hexdigest()[:16]


def own_data(model: Loaded) -> Path | None:
    """The prepared data of the model's run, if any; of a run in a bucket a local copy, made if need be."""
    root = model.run_folder
    if root is None or not (root / "data" / INFO_FILE).exists():
        return None
    data = local_root(root) / "data"
    if is_remote(root):
        download(root / "data", data, INFO_FILE)
    return data


def readable(data: Path) -> Path:
    """A folder of finished data, or its local copy, made if need be, if it is in a bucket."""
    if not is_remote(data):
        return data
    local = local_root(data)
    download(data, local, INFO_FILE)
    return local


def upload(local: Path, remote: Path, last: str) -> None:
    """Copies a folder into a bucket, the file `last` after all others."""
    files = (path for path in local.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: (path == local / last, path)):
        target = remote / path.relative_to(local).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def download(remote: Path, local: Path, last: str) -> None:
    """Copies a folder from a bucket, unless it was copied; several processes of a host may call this.

    It was copied if the file `last`, which is written after all others, is the same in both places.
    """
    with file_lock(local):
        if (local / last).exists() and (local / last).read_bytes() == (remote / last).read_bytes():
            return
        partial = local.with_name(f".{local.name}.download")
        shutil.rmtree(partial, ignore_errors=True)
        for path in _files(remote):
            target = partial / path.relative_to(remote).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        shutil.rmtree(local, ignore_errors=True)
        partial.rename(local)


def _files(folder: Path) -> Iterator[Path]:
    for path in entries(folder):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
