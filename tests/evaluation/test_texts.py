"""Texts as an evaluation reads them. Oracle: lines written by hand."""

import numpy as np
import pytest

from sdtt_jax.data import TokenizerConfig, train_tokenizer
from sdtt_jax.errors import DataError
from sdtt_jax.evaluation.texts import read_texts


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    """JSON lets U+2028 and U+0085 stand in a string as they are; Python's `splitlines` parts there."""
    path, tokenizer = tmp_path / "texts.jsonl", train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    text = "one\u2028two\u0085three"
    path.write_bytes(f'{{"text": "{text}"}}\r\n\n{{"tokens": [1, 2]}}\n'.encode())
    first, second = read_texts(str(path), tokenizer)
    assert tokenizer.decode(first) == text
    np.testing.assert_array_equal(second, [1, 2])


def test_texts_are_read_as_a_corpus_is(tmp_path):
    """Without Windows' ends of lines and its byte-order mark; of each, something is left."""
    path, tokenizer = (
        tmp_path / "texts.jsonl",
        train_tokenizer(TokenizerConfig("sentencepiece", "char"), ["ab\n"]),
    )
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n{"text": ""}\n{"text": "\xd0\xb6"}')
    texts = read_texts(str(path), tokenizer)
    assert tokenizer.decode(next(texts)) == "a\nb"
    assert len(next(texts)) == 0
    with pytest.raises(DataError, match=r"texts\.jsonl, line 3 holds nothing that the vocabulary"):
        next(texts)


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]", '{"text": "no tokenizer"}'])
def test_a_line_that_is_no_text_is_named(tmp_path, line):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"tokens": [1]}\n\n' + line)
    with pytest.raises(DataError, match=r"texts\.jsonl, line 3 "):
        list(read_texts(str(path), None))
