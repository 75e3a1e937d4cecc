"""Paths that users give, and writing files whole: the same code for a local disk and for `gs://`.

A remote path is an `epath.Path`, which has pathlib's methods; this module hides where the two differ.
"""

import contextlib
import errno
import glob
import importlib.util
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from etils import epath

from sdtt_jax.errors import ConfigError, DataError, UserError
from sdtt_jax.locks import lock, locked

PathLike = str | os.PathLike[str]
# Scheme of a remote path -> what epath needs to reach it, and our extra that installs it.
SCHEMES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", None)}


def is_remote(path: PathLike) -> bool:
    """Whether a path lies in a bucket, `gs://…`."""
    return "://" in os.fspath(path)


def as_path(path: PathLike) -> Path:
    """The path as an object with pathlib's methods; every path that a user gives passes through here.

    A local path that begins with `~` or `~USER` is below that home, as in a shell.

    Raises:
      ConfigError: a remote path of an unknown kind, or one whose library is not installed; an unknown home.
    """
    text = os.fspath(path)
    if not is_remote(text):
        found = Path(os.path.expanduser(text))
        if not os.fspath(found).startswith("~"):
            return found
        if text.startswith("~"):
            raise ConfigError(
                f"{text}: there is no home directory {text.split(os.sep)[0]}; give the full path, or "
                f"./{text} for a name that begins with ~."
            )
        # pathlib shortens "./~x" to "~x", which this function would take for a home the next time.
        return found.absolute()
    scheme = text.split("://")[0]
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError(
            f"{text}: {scheme}:// is not known; give a local path, or one of {known}."
        )
    package, extra = SCHEMES[scheme]
    if importlib.util.find_spec(package) is None:
        what = f"-e '.[{extra}]'" if extra else package
        raise ConfigError(
            f"{text}: {scheme}:// needs {package}, which is not installed: pip install {what}"
        )
    return cast(Path, epath.Path(text))


def is_misread(text: str) -> bool:
    """Whether a name or argument is UTF-8 that Python reads in the locale's encoding, with PYTHONUTF8=0."""
    with contextlib.suppress(UnicodeError):
        return os.fsencode(text).decode("utf-8") != text
    return False


def entries(folder: Path) -> list[Path]:
    """What is in a folder.

    A folder that was made in a bucket by hand, or by gcsfuse, is an empty object named `folder/`. The bucket
    lists that again within the folder, where it is nothing.
    """
    remote = is_remote(folder)
    found = folder.iterdir()
    return [path for path in found if not remote or path.name != folder.name or path.exists()]


def home() -> Path | None:
    """The user's home directory; None where there is none (a container's numeric user, no $HOME)."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def absolute(path: PathLike) -> Path:
    """The path from the root; a remote path already starts there."""
    found = as_path(path)
    return found if is_remote(found) else found.absolute()


def with_target(path: PathLike) -> list[Path]:
    """The path from the root, and the path that it resolves to if a symbolic link is part of it."""
    here = absolute(path)
    # Not `Path.resolve`, which raises a RuntimeError for a loop before Python 3.13.
    return [here] if is_remote(here) else list(dict.fromkeys([here, Path(os.path.realpath(here))]))


def resolve_links(path: PathLike) -> Path:
    """The path, or the target of a path that is a symbolic link; the target need not exist."""
    path = as_path(path)
    # These are no names, beside which something could be made.
    if path.name in ("", "..") and not is_remote(path):
        return Path(os.path.realpath(path))
    # Linux also gives up after 40 links.
    for _ in range(40 * (not is_remote(path))):
        if not path.is_symlink() or _is_open(path):
            break
        path = Path(os.path.realpath(path.parent)) / os.readlink(path)
    return path


def refuse_dangling(path: PathLike, error: type[UserError] = DataError) -> None:
    """Raises `error` if a symbolic link that is part of a path leads nowhere, or back to itself."""
    path = as_path(path)
    # What exists is one look at the disk, also for each of a million files of a corpus.
    sound = is_remote(path) or path.exists()
    for place in () if sound else (*reversed(path.parents), path):
        if place.is_symlink() and not place.exists():
            raise error(
                f"{place} is a link to {os.readlink(place)}, which leads nowhere; fix or remove it."
            )


def _is_open(path: Path) -> bool:
    """Whether the path refers to an open file descriptor, such as /proc/self/fd/1."""
    return Path(os.path.realpath(path.parent)).is_relative_to("/proc")


def is_irregular(path: PathLike) -> bool:
    """Whether the path is a device or a pipe: it exists, but is neither a file nor a folder."""
    path = as_path(path)
    return not is_remote(path) and path.exists() and not path.is_file() and not path.is_dir()


def _is_written_in_place(path: Path) -> bool:
    """Whether a path from `resolve_links` must be overwritten because nothing can be renamed onto it."""
    if is_remote(path) or is_irregular(path) or _is_open(path):
        return True
    # For example a single file that is mounted into a container.
    return path.exists() and not os.access(path.parent, os.W_OK)


def write_bytes(path: PathLike, content: bytes) -> None:
    """Writes a file through `written_whole`."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def remove_tree(path: PathLike) -> None:
    """Removes a folder and its content; does nothing if it does not exist."""
    found: Any = as_path(path)
    if is_remote(found):
        found.rmtree(missing_ok=True)
    else:
        shutil.rmtree(found, ignore_errors=True)


@contextlib.contextmanager
def written_whole(path: PathLike) -> Iterator[Path]:
    """Yields a temporary local file that replaces `path` when the block succeeds.

    On a disk it is renamed from the same folder, so readers see the whole old or the whole new file, even
    after a crash. Into a bucket it is uploaded. A device, a pipe or a file in a read-only folder is
    overwritten. A symbolic link stays one. The permissions follow from the umask, whatever the block sets.
    What a killed process has left of the same file is removed.

    Raises:
      DataError: as `refuse_dangling`, but for a link to a file that does not exist yet.
    """
    path = resolve_links(path)
    refuse_dangling(path)
    in_place = _is_written_in_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # A unique name: another thread, or a process of a killed run, may be writing the same file.
        name = f".{path.name}.{secrets.token_hex(4)}"
        if in_place:
            partial = Path(stack.enter_context(tempfile.TemporaryDirectory())) / name
        else:
            _remove_left(path)
            partial = path.with_name(name)
            stack.enter_context(locked(partial))
        try:
            with with_path_in_errors(path):
                # An empty file gets the mode of the umask and the folder; a process cannot read its umask
                # without changing it for its other threads.
                partial.touch()
                mode = stat.S_IMODE(partial.stat().st_mode)
                yield partial
                if in_place:
                    _copy(partial, path)
                else:
                    # Otherwise a power cut soon afterwards may leave an empty file under the new name.
                    with partial.open("rb") as written:
                        os.fsync(written.fileno())
                    # The library of safetensors writes files that their owner alone can read.
                    if stat.S_IMODE(partial.stat().st_mode) != mode:
                        partial.chmod(mode)
                    try:
                        os.replace(partial, path)
                    except OSError as error:
                        # A file that is a mount of its own, or another user's in /tmp, may yet be written to.
                        if error.errno not in (errno.EBUSY, errno.EPERM):
                            raise
                        _copy(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    """Removes the temporary files of processes that were killed while they wrote `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}"):
        with contextlib.suppress(OSError), left.open("r+b") as file:
            # Young ones stay too: a library may put a new file in place of the one that its writer locked.
            if left.stat().st_mtime < time.time() - 10 and lock(file, wait=False):
                for beside in path.parent.glob(f"{glob.escape(left.name)}.*"):  # of `write_tensors`
                    remove_tree(beside)
                left.unlink()


def _copy(file: Path, to: Path) -> None:
    with file.open("rb") as source, to.open("wb") as target:
        shutil.copyfileobj(source, target, 2**24)


@contextlib.contextmanager
def with_path_in_errors(path: PathLike) -> Iterator[None]:
    """Adds `path` to an `OSError` that has no file name, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


@contextlib.contextmanager
def file_lock(path: PathLike) -> Iterator[None]:
    """Locks a file against other processes while it is read, changed and written again.

    The operating system releases the lock however the process ends. In buckets, and on file systems without
    locks, nothing is locked.
    """
    path = resolve_links(path)
    if is_remote(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with locked(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def write_text(path: PathLike, content: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, content.encode("utf-8"))
