"""What low-precision Gumbel noise does to a sampler that draws MASK too, at 50,257 entries.

What it does to peaked distributions, and that ours does not: tests/ops/test_categorical.py. Oracle: the exact
law of the default mode of `jax.random.categorical`: its noise is -log(-log(u)) for one of 2^23 equally likely
u, and all of them fit in memory (arXiv 2409.02908 has the effect on published samplers).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

VOCAB = 50_257


@pytest.fixture(scope="module")
def low_noise():
    """Every value of the default mode's noise, ascending: `[2^23]` float64."""
    u = jnp.maximum(jnp.arange(2**23, dtype=jnp.float32) * 2.0**-23, jnp.finfo(jnp.float32).tiny)
    return np.asarray(jax.jit(lambda u: -jnp.log(-jnp.log(u)))(u), np.float64)


def _share_above(low_noise, value):
    """P(noise > value) in the default mode."""
    return 1 - np.searchsorted(low_noise, value, side="right") / len(low_noise)


def test_a_sampler_that_draws_mask_too_would_lose_its_rare_tokens(low_noise):
    """One of 1,024 steps as one draw over tokens and MASK, which keeps 1,023 / 1,024: the perplexity of what
    it reveals, Zipf's law over the vocabulary, falls from 1,931 to 258. (By the law, leaving out that two
    tokens win against MASK at once.) Ours chooses positions first and never draws MASK.
    """
    zipf = 1 / np.arange(1, VOCAB + 1)
    zipf /= zipf.sum()
    steps = 1024
    gap = np.log((steps - 1) / zipf)
    knots = np.linspace(gap.min(), gap.max(), 200)
    wins = np.array([_share_above(low_noise, low_noise[::64] + r).mean() for r in knots])
    revealed = np.interp(gap, knots, wins)
    revealed /= revealed.sum()
    entropy, drawn = -(zipf * np.log(zipf)).sum(), -(revealed * np.log(zipf)).sum()
    assert np.exp(entropy) == pytest.approx(1931, abs=1)
    assert np.exp(drawn) == pytest.approx(258, abs=3)
