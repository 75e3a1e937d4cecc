"""Opens and decompresses files on this machine, in a bucket or on the hub, and gives their sizes."""

import bz2
import contextlib
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sdtt_jax.data.files import codec_of
from sdtt_jax.errors import DataError, first_line
from sdtt_jax.paths import as_path, is_remote

HUB = "hf://"


def _hub() -> Any:
    from huggingface_hub import HfFileSystem  # takes 0.3 s

    return HfFileSystem()


@contextlib.contextmanager
def _network(path: str) -> Iterator[None]:
    """Turns every error of a bucket or the hub into a `DataError`, so that it is not skipped as bad input.

    The types of these errors depend on the client that reads the file.
    """
    try:
        yield
    except Exception as error:
        if not is_remote(path):
            raise
        raise DataError(
            f"{path} cannot be reached: {first_line(error)}. Run the same command again; it goes on from "
            "what is finished."
        ) from None


class _Remote(io.RawIOBase):
    """A file in a bucket or on the hub, whose errors are those that `_network` raises."""

    def __init__(self, path: str, file: Any):
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        with _network(self._path):
            return int(self._file.readinto(buffer))

    def close(self) -> None:
        self._file.close()
        super().close()


class _Bzip2(io.RawIOBase):
    """The streams of a bzip2 file, one after the other; some of them may be empty.

    Python's own `bz2` takes anything but a stream for the end of the file, and PyArrow fails at an empty one.
    """

    def __init__(self, file: IO[bytes]):
        self._file, self._stream = file, bz2.BZ2Decompressor()
        self._begun = False  # whether something of the stream has been read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            waiting = self._stream.unused_data
            if self._stream.eof:
                self._stream, self._begun = bz2.BZ2Decompressor(), False
            if self._stream.needs_input and not waiting:
                waiting = self._file.read(2**16)
                if not waiting and self._begun:
                    raise EOFError("the file ends within a stream")
                if not waiting:
                    return 0
            self._begun = True
            found = self._stream.decompress(waiting, len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)


def size_of(path: str) -> int:
    """Size of a file in bytes."""
    with _network(path):
        if path.startswith(HUB):
            return int(_hub().info(path)["size"])
        found: Any = as_path(path).stat()
        return int(found.st_size if isinstance(as_path(path), Path) else found.length)


@contextlib.contextmanager
def open_file(path: str) -> Iterator[IO[bytes]]:
    """Opens a file on this machine, in a bucket or on the hub, and decompresses it if it is compressed."""
    codec = codec_of(path)
    with _network(path):
        found: Any = _hub().open(path, "rb") if path.startswith(HUB) else as_path(path).open("rb")
    if is_remote(path):
        # fsspec's files cannot read a line only up to a given length.
        found = io.BufferedReader(_Remote(path, found), 2**16)
    with found as raw:
        if codec == "gzip":
            with gzip.open(raw) as file:
                yield file  # type: ignore[misc]
        elif codec == "bz2":
            with io.BufferedReader(_Bzip2(raw), 2**16) as file:
                yield file
        elif codec is not None:
            import pyarrow

            with io.BufferedReader(pyarrow.CompressedInputStream(raw, codec)) as file:
                yield file
        else:
            yield raw
