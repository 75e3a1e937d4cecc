"""Finds the text files at a path, and says which kinds of files are read."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sdtt_jax.data.records import INFO_FILE
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.paths import entries, is_misread, is_remote, refuse_dangling

SUFFIXES = (".txt", ".jsonl", ".parquet")
# Further suffixes of compressed text and JSON lines, and what PyArrow calls their codecs.
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


def codec_of(path: str) -> str | None:
    """The codec of a file that its name says is compressed, as PyArrow calls it; None for other files."""
    return CODECS.get(os.path.splitext(path.lower())[1])


class Found(NamedTuple):
    """The files at a path."""

    files: list[Path]  # those that are read, in the order of their paths
    others: list[Path]  # files of other kinds there, hidden ones not counted
    is_folder: bool  # whether the path is a folder

    def __str__(self) -> str:
        """How many of the files are read, and of what kinds the others are."""
        total = len(self.files) + len(self.others)
        kinds = sorted({_shown(path.suffix or path.name) for path in self.others})
        left_out = f" (not read: {listed(kinds)})" if kinds else ""
        return f"{len(self.files)} of {total} files{left_out}"


def find_files(path: Path, field: str = "data.corpus") -> Found:
    """The files at an existing path: the file itself, or all files below a folder.

    Links are followed, and each folder and file is visited once. Hidden files and folders are left out: they
    belong to file managers and editors. Errors name the field or flag that holds the path.

    Raises:
      ConfigError: the path is neither a file of a known kind nor a folder that holds one; or a folder is
        the directory of a run.
      DataError: a link leads nowhere, a folder cannot be listed, or the name of a file is not UTF-8.
    """
    kinds = ", ".join(SUFFIXES)
    refuse_dangling(path)
    _refuse_unwritable(path)
    if not path.is_dir():
        if kind_of_file(path) is None:
            raise ConfigError(
                f"{field}: {path} is not a {kinds} file; convert it, or give another."
            )
        return Found([path], [], is_folder=False)
    seen: dict[str, Path] = {}
    _walk(path, {_real(path)}, seen, field)
    found = Found([], [], is_folder=True)
    for file in sorted(seen.values()):
        (found.files if _is_read(file) else found.others).append(file)
    if not found.files:
        raise ConfigError(
            f"{field}: the folder {path} holds no {kinds} file; give a folder that does."
        )
    for file in found.files:
        _refuse_unwritable(file)
    return found


def _walk(folder: Path, folders: set[str], files: dict[str, Path], field: str) -> None:
    """Adds the files below a folder to `files`, by their real paths, and the folders in it to `folders`."""
    try:
        # Links come last, so that a file is known by its own name where it has one here.
        inside = sorted(
            entries(folder), key=lambda file: (not is_remote(file) and file.is_symlink(), file)
        )
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}.") from None
    if (folder / "data" / INFO_FILE).exists():
        raise ConfigError(
            f"{field}: {folder} is the directory of a run, whose files hold metrics and generated texts; "
            "give the text that it was prepared from, without it."
        )
    for entry in inside:
        if entry.name.startswith("."):
            continue
        refuse_dangling(entry)
        real = _real(entry)
        if not entry.is_dir():
            # A model hub's cache keeps files without suffixes, and links to them that have one.
            if real not in files or not _is_read(files[real]):
                files[real] = entry
        elif real not in folders:
            folders.add(real)
            _walk(entry, folders, files, field)


def _real(path: Path) -> str:
    """The path with links resolved; a bucket has none."""
    return str(path) if is_remote(path) else os.path.realpath(path)


def _shown(name: str) -> str:
    r"""A file name with bytes that are not UTF-8 (surrogates, in Python) written as `\xe9`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _refuse_unwritable(path: Path) -> None:
    """Refuses a name that a preparation's records, which are UTF-8, cannot hold."""
    if _shown(str(path)) != str(path):
        fault = "is not UTF-8, as from an archive of another system; rename it"
        if is_misread(str(path)):
            fault = "is UTF-8, which this locale's encoding is not; set PYTHONUTF8=1"
        raise DataError(f"The name of {_shown(str(path))} {fault}.")


def _is_read(file: Path) -> bool:
    return kind_of_file(file) is not None and file.is_file()


def kind_of_file(path: str | os.PathLike[str]) -> str | None:
    """Which of `SUFFIXES` a file is read as; None if it is not read.

    Text and JSON lines may be compressed (`x.jsonl.gz`). A compressed `.json` is read as JSON lines, since
    C4 is published that way; an uncompressed `.json` rarely holds lines, and is not read.
    """
    stem, suffix = os.path.splitext(os.path.basename(path).lower())
    if suffix not in CODECS:
        return suffix if suffix in SUFFIXES else None
    suffix = os.path.splitext(stem)[1].replace(".json", ".jsonl").replace(".jsonll", ".jsonl")
    return suffix if suffix in (".txt", ".jsonl") else None


def listed(names: Iterable[object]) -> str:
    """The first eight of some names, sorted, for messages."""
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:8]) + (", …" if len(ordered) > 8 else "") if ordered else "none"
