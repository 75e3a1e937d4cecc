"""Mixtures. Oracles: the enumerated law of the teacher's sampler, and sums over the values written out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.mixture import MixtureConfig, log_shares, mixture_terms
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.config import CoupledConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.ops.noise import LATENT, draw_noise, every_value
from tests.diffusion.test_sampler import exact_texts, text_counts
from tests.statistics import assert_fits
from tests.worlds import (
    LENGTH,
    MASK,
    VOCAB,
    TableDenoiser,
    all_states,
    noisy_params,
    predictions,
    random_table,
    tiny_network,
)

SCHEDULE, VALUES = make_schedule(), 2
TEACHER, TABLE = MaskedDiffusion(TableDenoiser(), SCHEDULE), random_table(1)
LATENT_OF = NoiseConfig(LATENT, num_values=VALUES)
# One layer: the tests run it on a hundred thousand texts.
SIZES = dataclasses.replace(tiny_network().config, num_layers=1)
NETWORK = CoupledDenoiser(CoupledConfig.of(SIZES, LATENT_OF))
STUDENT = MaskedDiffusion(NETWORK, SCHEDULE)
PARAMS = functools.partial(noisy_params, NETWORK, 3, spread=0.4)
STATES = all_states()


@functools.cache
def tables():
    """Predictions at all states for each value: `[values, states, LENGTH, VOCAB]`."""

    def predicted(noise):
        shown = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(STATES), *x.shape)), noise)
        logits = NETWORK.logits(PARAMS(), NETWORK.hidden(PARAMS(), STATES, None, shown))
        return jax.nn.softmax(logits[..., :VOCAB])

    every = functools.partial(every_value, NETWORK.noise_kind, 1, LENGTH)
    return np.asarray(jax.jit(lambda: jax.lax.map(predicted, every()))(), np.float64)


def test_a_latent_is_one_value_for_all_positions_and_masks_are_one_for_each():
    draw = jax.jit(draw_noise, static_argnums=(1, 2, 3))
    latent = np.asarray(draw(jax.random.key(0), (500, LENGTH), VOCAB, "latent:4").token)
    assert latent.shape == (500, LENGTH, 4)
    assert (latent == latent[:, :1]).all()
    np.testing.assert_allclose(latent[:, 0].mean(axis=0), 0.25, atol=0.1)
    masks = np.asarray(draw(jax.random.key(0), (500, LENGTH), VOCAB, "masks:4").token)
    assert (masks != masks[:, :1]).any()
    assert (masks.sum(axis=-1) == 1).all()


def test_the_loss_is_the_cross_entropy_of_the_joint_law():
    """From all MASK, with the teacher's two calls: n = 40,000 texts, standard error at most 0.006, seed 0."""
    config, count = MixtureConfig(2, 2, full_share=1.0), 40_000
    x0, key = np.zeros((count, LENGTH), np.int32), jax.random.key(0)
    total, weight = jax.jit(
        lambda x0: mixture_terms(STUDENT, PARAMS(), TEACHER, TABLE, x0, key, config)
    )(x0)
    law = exact_texts(predictions(TEACHER.denoiser, TABLE), SamplerConfig(2))
    first = tables()[:, -1]
    texts = np.indices((VOCAB,) * LENGTH).reshape(LENGTH, -1).T
    given = np.prod([first[:, i, texts[:, i]] for i in range(LENGTH)], axis=0)
    expected = -(law * np.log(given.mean(axis=0))).sum()
    independent = -(
        law * np.log(np.prod([first.mean(0)[i, texts[:, i]] for i in range(3)], 0))
    ).sum()
    assert float(weight) == count * LENGTH
    assert abs(expected - independent) > 0.02
    assert float(total) / count == pytest.approx(expected, abs=0.02)


def test_each_of_the_teachers_calls_draws_anew_and_is_one_of_all_its_calls():
    """Two of three calls reveal two thirds. n = 6,000 positions, standard error 6e-3, seed 1."""
    x0, config = jnp.zeros((2000, LENGTH), jnp.int32), MixtureConfig(3, 2, full_share=1.0)
    terms = jax.jit(mixture_terms, static_argnums=(0, 2, 6))
    _, count = terms(STUDENT, PARAMS(), TEACHER, TABLE, x0, jax.random.key(1), config)
    assert float(count) / x0.size == pytest.approx(2 / 3, abs=0.03)


def test_shares_are_those_of_the_values_when_one_call_wrote_what_is_shown():
    first = tables()[:, -1]
    expected = np.ones((len(STATES), VALUES))
    for state, row in zip(STATES, expected, strict=True):
        for i in np.flatnonzero(state != MASK):
            row *= first[:, i, state[i]]
    expected /= expected.sum(axis=1, keepdims=True)
    found = np.exp(jax.jit(log_shares, static_argnums=0)(STUDENT, PARAMS(), STATES))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_sampler_keeps_a_texts_value_for_all_its_calls():
    """n = 50,000, standard error of a frequency at most 2.2e-3, seed 2."""
    config, x_init = SamplerConfig(2), prior_sample(50_000, LENGTH, MASK)
    state, _ = jax.jit(sample, static_argnums=(0, 4))(
        STUDENT, PARAMS(), jax.random.key(2), x_init, config
    )
    assert_fits(text_counts(state.x), np.mean([exact_texts(t, config) for t in tables()], axis=0))


def test_every_parameter_learns_and_no_gradient_reaches_the_teacher():
    x0, config = jnp.zeros((8, LENGTH), jnp.int32), MixtureConfig(4, 2)

    def total(params, table):
        return mixture_terms(STUDENT, params, TEACHER, table, x0, jax.random.key(0), config)[0]

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(PARAMS(), TABLE)
    student, teacher = jax.device_get(gradients)
    assert (teacher["table"] == 0).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(student))
    values = student["noise"]["values"]
    assert (np.abs(values).sum(axis=-1) > 0).all()


def test_a_network_that_sees_other_noise_is_refused():
    config = dataclasses.replace(NETWORK.config, noise=NoiseConfig())
    other = MaskedDiffusion(CoupledDenoiser(config), SCHEDULE)
    x0 = jnp.zeros((2, LENGTH), jnp.int32)
    for student in (other, TEACHER):
        with pytest.raises(ConfigError, match="needs a student that sees a latent value"):
            mixture_terms(student, {}, TEACHER, TABLE, x0, jax.random.key(0), MixtureConfig())


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"num_distill_calls": 1}, "num_distill_calls"), ({"num_calls": 4}, "at most num_calls=4")],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        MixtureConfig(**fields)
