"""Draws from noise that is there in advance. Oracle: the softmax of the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.ops.categorical import BLOCK
from sdtt_jax.ops.noise import draw_noise, noisy_argmax
from tests.statistics import assert_fits


@pytest.mark.parametrize(("vocab", "levels"), [(5, "full"), (300, "two-level")])
def test_the_noises_argmax_has_the_distribution_of_the_logits(vocab, levels):
    """n = 50,000, standard error of a frequency at most 2.2e-3, seed 1."""
    logits = 1.5 * jax.random.normal(jax.random.key(0), (vocab,))
    noise = draw_noise(jax.random.key(1), (50_000,), vocab, levels)
    tokens = noisy_argmax(jnp.broadcast_to(logits, (50_000, vocab)), noise)
    exact = np.asarray(jax.nn.softmax(logits), np.float64)
    assert_fits(np.bincount(np.asarray(tokens), minlength=vocab), exact / exact.sum())


def test_two_levels_need_few_numbers():
    noise = draw_noise(jax.random.key(0), (2, 3), 50_257, "two-level")
    assert noise.token.shape == (2, 3, 393)
    assert noise.entry.shape == (2, 3, BLOCK)
    assert draw_noise(jax.random.key(0), (2, 3), 9, "full").entry is None
