"""Folders that hold a whole export or none, however the process that writes it ends."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sdtt_jax.errors import ConfigError
from sdtt_jax.locks import locked
from sdtt_jax.paths import PathLike, remove_tree, resolve_links, with_path_in_errors

# What `filled_whole` writes first into a folder, and removes last.
UNFINISHED = ".unfinished-export"


@contextlib.contextmanager
def filled_whole(directory: PathLike) -> Iterator[None]:
    """A block that fills a local folder, which holds a file `UNFINISHED` until the block has succeeded.

    If that file is there already, what an earlier process has left beside it is removed first; one that is
    still at work is waited for. If the block fails, so is what it has written, as far as its threads have
    stopped; an error without a file name, such as that of a full disk, gets the folder's.

    Raises:
      ConfigError: as `require_empty`.
    """
    directory = resolve_links(directory)
    require_empty(directory)
    directory.mkdir(parents=True, exist_ok=True)
    marker = directory / UNFINISHED
    with with_path_in_errors(directory), locked(marker) as file:
        # A marker without a byte is new: another process may have filled the folder since.
        if not marker.stat().st_size and any(entry != marker for entry in directory.iterdir()):
            marker.unlink()
            require_empty(directory)
        file.write(b"What is in this folder is not whole; the next export to it removes it.\n")
        file.flush()
        _remove_all_but(marker)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                _remove_all_but(marker)
            raise
        marker.unlink()


def require_empty(directory: Path) -> None:
    """Raises `ConfigError` unless the folder is missing or empty, or holds what `filled_whole` may remove."""
    there = directory.exists() or directory.is_symlink()  # the latter: a loop of links
    usable = directory.is_dir() and (
        (directory / UNFINISHED).exists() or not any(directory.iterdir())
    )
    if there and not usable:
        raise ConfigError(
            f"--output={directory} already exists and is not an empty folder; choose another."
        )


def _remove_all_but(kept: Path) -> None:
    for entry in kept.parent.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        elif entry != kept:
            entry.unlink(missing_ok=True)
