"""The teacher-free loss. Oracle: the sum over all texts, from a table of predictions."""

import functools
import itertools

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.alpha import AlphaConfig, alpha_terms
from sdtt_jax.errors import ConfigError
from sdtt_jax.objectives import alpha_loss
from tests.worlds import LENGTH, VOCAB, TableDenoiser, all_states, predictions, random_table

DIFFUSION, TABLE = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(3)
TEXTS = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)), np.int32)
FULL = len(all_states()) - 1  # all MASK


def joint(table):
    """The probability of every text, if one call reveals all of it."""
    first = predictions(DIFFUSION.denoiser, table)[FULL]
    return np.prod([first[i, TEXTS[:, i]] for i in range(LENGTH)], axis=0)


ALPHAS = [0.0, 1e-6, 0.3, 1.0]


@functools.cache
def at_one_call():
    """The terms at each alpha, by one program."""

    @jax.jit
    def terms(x0):
        configs = (AlphaConfig(alpha, num_calls=1) for alpha in ALPHAS)
        return [alpha_terms(DIFFUSION, TABLE, x0, jax.random.key(0), c) for c in configs]

    return dict(zip(ALPHAS, terms(TEXTS), strict=True))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_at_one_call_it_is_that_of_the_whole_text(alpha):
    total, count = at_one_call()[alpha]
    p = joint(TABLE)
    expected = -np.log(p) if alpha < 1e-3 else (1 - p**alpha) / alpha
    assert float(total) == pytest.approx(expected.sum(), rel=1e-4)
    assert float(count) == TEXTS.size


def test_texts_may_be_lists():
    config = AlphaConfig(0.3, num_calls=1)
    key, texts = jax.random.key(0), TEXTS.tolist()
    total, _ = jax.jit(lambda: alpha_terms(DIFFUSION, TABLE, texts, key, config))()
    assert float(total) == pytest.approx(float(at_one_call()[0.3][0]))


def test_its_gradient_weighs_blocks_by_their_probability():
    config = AlphaConfig(0.5, num_calls=1)
    loss = alpha_loss(DIFFUSION, config)
    key = jax.random.key(0)
    gradient = jax.jit(jax.grad(lambda table, x0: loss(table, {}, x0, key).total))(TABLE, TEXTS)
    table, p = predictions(DIFFUSION.denoiser, TABLE)[FULL], joint(TABLE)
    expected = np.zeros((LENGTH, VOCAB))
    for text, weight in zip(TEXTS, np.sqrt(p), strict=True):
        expected += weight * (table - np.eye(VOCAB)[text])
    np.testing.assert_allclose(gradient["table"][FULL], expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(gradient["table"]).all()


@pytest.mark.parametrize(
    ("fields", "named"), [({"alpha": 2.0}, "alpha"), ({"num_calls": 0}, "num")]
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        AlphaConfig(**fields)
