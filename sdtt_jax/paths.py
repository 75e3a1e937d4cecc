"""Paths that may lie in a bucket: one code for a laptop's disk and `gs://`.

A remote path is an `epath.Path`, which has pathlib's methods; what the two do differently is here.
"""

import contextlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, cast

from etils import epath

from sdtt_jax.errors import ConfigError, DataError, UserError

PathLike = str | os.PathLike[str]
# Scheme of a remote path -> what epath needs to reach it, and our extra that installs it.
SCHEMES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", None)}


def is_remote(path: PathLike) -> bool:
    """Whether a path is a bucket's, `gs://…`."""
    return "://" in os.fspath(path)


def as_path(path: PathLike) -> Path:
    """The path as an object with pathlib's methods.

    Raises:
      ConfigError: a remote path of an unknown kind, or whose library is not installed.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return Path(text)
    scheme = text.split("://")[0]
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError(
            f"{text}: {scheme}:// is not known; give a local path, or one of {known}."
        )
    package, extra = SCHEMES[scheme]
    if importlib.util.find_spec(package) is None:
        what = f"'sdtt_jax[{extra}]'" if extra else package
        raise ConfigError(
            f"{text}: {scheme}:// needs {package}, which is not installed: pip install {what}"
        )
    return cast(Path, epath.Path(text))


def home() -> Path | None:
    """The user's home directory; None where there is none (a container's numeric user, no $HOME)."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def absolute(path: PathLike) -> Path:
    """The path from the root; a remote one is that already."""
    found = as_path(path)
    return found if is_remote(found) else found.absolute()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old one or the new one.

    In a bucket an object appears when it is whole; on a disk it is written beside its place and moved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        # A full disk does not say where it is.
        error.filename = error.filename or os.fspath(path)
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any, **options: Any) -> None:
    """`write_text` of JSON and a line's end, indented by two unless `json.dumps` is given other options."""
    write_text(path, json.dumps(content, **({"indent": 2} | options)) + "\n")


def read_json(path: PathLike, error: type[UserError] = DataError, remedy: str = "") -> Any:
    """The content of a JSON file.

    Args:
      path: local, or in a bucket.
      error: what is raised.
      remedy: what the user can do about a file that is not JSON, for the end of the message.

    Raises:
      UserError: of that kind: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(as_path(path).read_text(encoding="utf-8"))
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}.") from None
    except (ValueError, RecursionError) as reason:
        advice = f"; {remedy}" if remedy else ""
        raise error(f"{path} is not JSON ({reason}){advice}.") from None


def modified(path: Path) -> float:
    """Seconds since the epoch at which a file was written."""
    found = path.stat()
    return float(found.mtime if is_remote(path) else found.st_mtime)  # type: ignore[attr-defined]
