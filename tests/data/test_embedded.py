"""Oracles: the number of chapters of the Protestant canon, and the first words of each translation."""

import re
import sys

import pytest

from sdtt_jax.data import DataConfig
from sdtt_jax.data.corpora import CORPORA, documents
from sdtt_jax.data.embedded import bible_chapters
from sdtt_jax.errors import DataError


def test_the_bible_is_1189_chapters_of_clean_text():
    chapters = list(bible_chapters())
    assert len(chapters) == 1189
    assert chapters[0].startswith(
        "In the beginning God created the heavens and the earth. Now the earth was formless"
    )
    assert chapters[-1].endswith("Amen.")
    job, psalm = chapters[477:479]
    assert job.endswith("So Job died, being old and full of days.")
    assert psalm.startswith("Blessed is the man who doesn't walk")
    text = "\n".join(chapters)
    assert 4_000_000 < len(text) < 4_100_000
    assert not re.search(r"[0-9`\[\]]|  |\t", text)


def test_another_translation_goes_by_another_name():
    chapters = list(documents(DataConfig("american_standard_version")))
    assert len(chapters) == 1189
    assert chapters[0].startswith("In the beginning God created the heavens and the earth. And the")
    assert not re.search(r"[0-9`\[\]{}*]|  |\t", "\n".join(chapters))


def test_a_translation_that_is_not_installed_names_its_package(monkeypatch):
    for name in ("king_james_version", "youngs_literal_translation", "darby_bible"):
        version = CORPORA[name].source.args[0]
        monkeypatch.setitem(sys.modules, f"pythonbible_{version}", None)
        with pytest.raises(DataError, match=rf"pip install pythonbible-{version}\."):
            next(documents(DataConfig(name)))
