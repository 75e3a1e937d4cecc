import re

from sdtt_jax.data.embedded import bible_chapters


def test_the_bible_is_1189_chapters_of_clean_text():
    # Oracle: the number of chapters of the Protestant canon.
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
