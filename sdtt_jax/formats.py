"""JSON files and the lines of text files: the one reader of each, whose errors say what is wrong where."""

import codecs
import json
from collections.abc import Iterator
from typing import Any

from sdtt_jax.errors import DataError, UserError
from sdtt_jax.paths import PathLike, as_path, write_text


def write_json(path: PathLike, content: Any, **options: Any) -> None:
    """`write_text` of JSON and a line end; `options` are those of `json.dumps`, by default an indent of 2."""
    write_text(path, json.dumps(content, **({"indent": 2} | options)) + "\n")


def read_json(
    path: PathLike,
    error: type[UserError] = DataError,
    remedy: str = "",
    fault: str = "is not JSON",
) -> dict[str, Any]:
    """The object in a JSON file, as `parse_json` reads it.

    Args:
      path: local, or in a bucket.
      error, remedy: the type of the error, and the end of its message: what the user can do.
      fault: what the message says of a file that is not JSON.

    Raises:
      UserError: of type `error`: the file cannot be read, is not JSON, or holds no object.
    """
    try:
        raw = as_path(path).read_bytes()
    except IsADirectoryError:
        held = sorted(entry.name for entry in as_path(path).glob("[!.]*"))
        raise error(f"{path} is a folder; give a file. It holds {', '.join(held[:8])}.") from None
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}.") from None
    value = parse_json(raw, str(path), error, remedy, fault)
    if isinstance(value, dict):
        return value
    raise error(f"{path} holds no JSON object" + (f"; {remedy}." if remedy else "."))


def parse_json(
    raw: bytes | str,
    where: str,
    error: type[UserError] = DataError,
    remedy: str = "",
    fault: str = "is not JSON",
    halves: bool = False,
) -> Any:
    """The value of a JSON text in UTF-8, with or without a byte-order mark.

    Args:
      raw: the text.
      where: where the text was found, for the message.
      error, remedy, fault: as for `read_json`.
      halves: whether halves of surrogate pairs are let through.

    Raises:
      UserError: of type `error`: the text is not JSON, or holds half of a surrogate pair, unless `halves`.
    """
    try:
        text = raw if isinstance(raw, str) else raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        value = json.loads(text)
        if "\\u" in text and not halves:
            # JSON can spell half of a surrogate pair, which is not a character and cannot be stored.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as reason:
        line = f"line {reason.lineno}, " if reason.lineno > 1 else ""
        said = f"{reason.msg} at {line}column {reason.colno}"
    except UnicodeEncodeError:
        said = "it holds half of a surrogate pair, \\ud8xx, which is not a character"
    except (ValueError, RecursionError) as reason:
        # Not UTF-8, a number of thousands of digits, or brackets without end.
        said = str(reason)
    raise error(f"{where} {fault} ({said})" + (f"; {remedy}." if remedy else "."))


# What a file of Git LFS that was not downloaded begins with.
LFS = b"version https://git-lfs.github.com/spec/"
# First bytes of files in other formats than text, and what to do about them; no line of text begins so.
_OTHERS = {
    b"\x1f\x8b": "compressed (gzip); decompress it first",
    b"\x28\xb5\x2f\xfd": "compressed (zstd); decompress it first",
    b"BZh91AY&SY": "compressed (bzip2); decompress it first",
    b"\xfd7zXZ\0": "compressed (xz); decompress it first",
    b"PK\x03\x04": "compressed (zip); decompress it first",
    b"PAR1\x15": "Parquet; convert it to JSON lines",
    LFS: "a pointer of Git LFS; fetch the file that it stands for",
}


def other_format(begin: bytes) -> str | None:
    """The format of a file that begins with these bytes, and what to do about it; None if it may be text."""
    # Without its mark, UTF-16 of most texts is UTF-8 too: with a NUL beside each letter, or each space.
    nul = (
        "UTF-16 or no text (it has NUL bytes); convert it to UTF-8" if b"\0" in begin[:64] else None
    )
    return next((said for mark, said in _OTHERS.items() if begin.startswith(mark)), nul)


def text_lines(path: PathLike) -> Iterator[tuple[str, str]]:
    """Place ("x.jsonl, line 3") and text of each line that is not blank; only a line feed ends a line.

    JSON allows U+2028, U+0085 and others in a string, where Python's `splitlines` would cut. The file may
    begin with a byte-order mark.

    Raises:
      DataError: the file cannot be read or is of another format, or a line is not UTF-8.
    """
    offset = 0
    try:
        with as_path(path).open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                where = f"{path}, line {number}"
                if number == 1 and (other := other_format(raw)):
                    raise DataError(f"{path} is {other}.")
                body = raw.removeprefix(codecs.BOM_UTF8)
                line = decoded(body, where + ",", DataError, offset + len(raw) - len(body))
                offset += len(raw)
                if line.strip():
                    yield where, line
    except OSError as reason:
        raise DataError(f"{path} cannot be read: {reason.strerror or reason}.") from None


def decoded(raw: bytes, where: str, error: type[UserError] = DataError, offset: int = 0) -> str:
    """Decodes UTF-8, or raises `error`, which says `where` and at which byte, counted from `offset`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise error(
            f"{where} is not UTF-8 text: the byte at offset {offset + reason.start} cannot be "
            "decoded; convert the file to UTF-8."
        ) from None
