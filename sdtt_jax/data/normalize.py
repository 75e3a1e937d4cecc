"""Normalisations of text, all idempotent: line ends and byte-order marks, and text8's small alphabet."""

import re
from collections.abc import Callable
from typing import Any

from sdtt_jax.errors import ConfigError, DataError, UserError

# Stands between a prompt and what follows it while both are one text: ASCII's record separator.
PROMPT_END = "\x1e"
_OUTSIDE_A_TO_Z = re.compile(r"[^a-z]+")
_OTHER_LETTER = re.compile(r"[^\W\d_a-zA-Z]")


def text8(text: str) -> str:
    """Lowercase; every run of anything outside a-z becomes one space; none at either end.

    The 27 characters of the text8 benchmark, except that digits are dropped rather than spelled
    out. The apostrophe of a contraction becomes a space like everything else.
    """
    return _OUTSIDE_A_TO_Z.sub(" ", text.lower()).strip(" ")


def letters_lost(text: str, normalized: str) -> int:
    """How many letters outside a-z, such as é or those of another alphabet, a normalisation drops."""
    if text.isascii():
        return 0
    return len(_OTHER_LETTER.findall(text)) - len(_OTHER_LETTER.findall(normalized))


def without_traces_of_files(raw: str) -> str:
    """The text with `\\n` for the line ends of all systems, and without a byte-order mark.

    Every text is read so before a tokenizer sees it, whether it comes from a file or from a caller;
    `ConfigError` if it is no text.
    """
    require_text(raw)
    return raw.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def require_text(text: Any) -> None:
    """Raises `ConfigError` if something is no text; the letters of bytes are not known."""
    # Not by `require`, which would build its message, with the repr of the whole text, each time.
    if not isinstance(text, str):
        raise ConfigError(
            f"A text to encode must be a str, not {text!r:.60}; bytes become one with .decode('utf-8')."
        )


def require_characters(text: str, error: type[UserError] = DataError) -> None:
    """Raises `error` if a text holds half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as reason:
        near = text[max(0, reason.start - 20) : reason.end + 20]
        raise error(
            f"{near!r} holds half of a surrogate pair, which is not a character; fix the text."
        ) from None


NORMALIZERS: dict[str, Callable[[str], str]] = {"none": str, "text8": text8}
