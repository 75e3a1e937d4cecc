"""Prompts and gaps. Oracle: the text written out token by token."""

import numpy as np
import pytest

from experiments.sample import fixed_tokens
from sdtt_jax.errors import ConfigError


class Letters:
    """A tokenizer whose ids are places in the alphabet."""

    def encode(self, text):
        return np.array([ord(letter) - ord("a") for letter in text], np.int32)


def _fixed(prompt=None, infill=None, length=8):
    tokens, fixed = fixed_tokens(Letters(), length, prompt, infill)
    assert tokens.dtype == np.int32
    assert tokens.shape == fixed.shape == (length,)
    return "".join(
        chr(token + ord("a")) if given else "." for token, given in zip(tokens, fixed, strict=True)
    )


@pytest.mark.parametrize(
    ("prompt", "infill", "expected"),
    [
        (None, None, "........"),
        ("abc", None, "abc....."),
        ("abcdefgh", None, "abcdefgh"),
        (None, "ab[3]c", "ab...c.."),
        (None, "[2]ab[1]c[2]", "..ab.c.."),
        (None, "[8]", "........"),
        (None, "ab[0]c", "abc....."),
        (None, "ab", "ab......"),
    ],
)
def test_given_tokens(prompt, infill, expected):
    assert _fixed(prompt, infill) == expected


@pytest.mark.parametrize(
    ("prompt", "infill", "message"),
    [
        ("abcdefghi", None, "--prompt is longer than the model's 8 tokens"),
        (None, "abc[6]", "--infill is longer than the model's 8 tokens"),
        (None, "[8]a", "--infill is longer"),
        ("a", "b", "--prompt or --infill, not both"),
    ],
)
def test_what_cannot_be_written(prompt, infill, message):
    with pytest.raises(ConfigError, match=message):
        _fixed(prompt, infill)
