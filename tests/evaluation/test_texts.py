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


@pytest.mark.parametrize("line", ["nonsense", "[1, 2]", '{"text": "no tokenizer"}'])
def test_a_line_that_is_no_text_is_named(tmp_path, line):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"tokens": [1]}\n\n' + line)
    with pytest.raises(DataError, match=r"texts\.jsonl, line 3 "):
        list(read_texts(str(path), None))
