"""Inverse distillation of a noise-coupled student. Oracles: a generation of two calls, and sums by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation import coupled_idlm
from sdtt_jax.distillation.coupled_idlm import CoupledIdlmConfig, coupled_idlm_terms
from sdtt_jax.distillation.idlm import FAKE, STUDENT
from sdtt_jax.distillation.trajectories import noise_of
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.config import CoupledConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.objectives import coupled_idlm_loss
from tests.worlds import LENGTH, MASK, TableDenoiser, noisy_params, random_table, tiny_network

# As many columns as the network has, which pads its vocabulary.
DIFFUSION = MaskedDiffusion(TableDenoiser(padded_vocab=128), make_schedule())
NETWORK = CoupledDenoiser(CoupledConfig.of(tiny_network().config, NoiseConfig(hidden_dim=8)))
STUDENT_MODEL = MaskedDiffusion(NETWORK, make_schedule())
TEACHER = random_table(1)
PARAMS = {STUDENT: noisy_params(NETWORK, 2), FAKE: random_table(3)}
SHAPE, KEY, CONFIG = (32, LENGTH), jax.random.key(4), CoupledIdlmConfig()


@functools.partial(jax.jit, static_argnames="config")
def terms(params, teacher, config=CONFIG):
    return coupled_idlm_terms(STUDENT_MODEL, DIFFUSION, params, teacher, SHAPE, KEY, config)


@functools.cache
def seen(full_share):
    """What the student saw: the noise, the masked texts, and its states at them."""

    def captured(student, diffusion, params, teacher, x_t, hidden, keys, config):
        del student, diffusion, params, teacher, keys, config
        return x_t, hidden

    @jax.jit
    def found():
        keys = jax.random.split(jax.random.split(KEY, 6)[0], SHAPE[0])
        config = CoupledIdlmConfig(full_share)
        of_terms = coupled_idlm_terms(STUDENT_MODEL, DIFFUSION, PARAMS, TEACHER, SHAPE, KEY, config)
        return noise_of(STUDENT_MODEL, keys, LENGTH), *of_terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coupled_idlm, "inverse_terms", captured)
        return jax.device_get(found())


def test_it_learns_where_a_generation_begins_and_within_its_own_text():
    """The first positions in the order of the noise are revealed; at a full share of 1, none."""
    noise, x_t, _ = seen(full_share=0.0)
    ranks = np.argsort(np.argsort(-noise.order, axis=-1), axis=-1)
    masked = x_t == MASK
    count = LENGTH - masked.sum(axis=-1)
    np.testing.assert_array_equal(~masked, ranks < count[:, None])
    assert set(count) == set(range(LENGTH))
    _, x_t, _ = seen(full_share=1.0)
    assert (x_t == MASK).all()


def test_the_student_is_shown_the_noise_that_its_text_was_made_of():
    noise, x_t, hidden = seen(full_share=0.0)
    sigma = np.ones(SHAPE[0], np.float32)  # this network does not look at it
    call = jax.jit(STUDENT_MODEL.hidden)
    np.testing.assert_allclose(call(PARAMS[STUDENT], x_t, sigma, noise), hidden, atol=1e-5)
    other = jax.tree.map(lambda x: x[::-1], noise)
    assert np.abs(call(PARAMS[STUDENT], x_t, sigma, other) - hidden).max() > 1e-2


def test_each_loss_trains_its_own_network_and_neither_the_teacher():
    gradient = jax.jit(
        jax.jacrev(lambda params, teacher: jnp.stack(terms(params, teacher)), argnums=(0, 1))
    )
    of_params, of_teacher = jax.device_get(gradient(PARAMS, TEACHER))
    moved = jax.tree.map(lambda g: np.abs(g).reshape(2, -1).max(axis=1), of_params)
    assert np.isfinite(jax.tree.leaves(moved)).all()
    by_network = {name: sum(jax.tree.leaves(moved[name])) for name in PARAMS}
    assert by_network[STUDENT][0] > 0 == by_network[STUDENT][1]
    assert by_network[FAKE][1] > 0 == by_network[FAKE][0]
    # The parameters that read the noise are trained too.
    assert sum(jax.tree.leaves(moved[STUDENT]["noise"]))[0] > 0
    assert (of_teacher["table"] == 0).all()


def test_a_fake_that_is_the_teacher_teaches_nothing():
    student, _ = terms({STUDENT: PARAMS[STUDENT], FAKE: TEACHER}, TEACHER)
    assert float(student) == pytest.approx(0.0, abs=1e-4)


def test_the_teachers_temperature_divides_what_the_teacher_says():
    """What another teacher's log-probabilities add to the loss is halved at temperature 2."""
    other, added = random_table(5), []
    for config in (CONFIG, CoupledIdlmConfig(teacher_temperature=2.0)):
        one, two = (float(terms(PARAMS, teacher, config)[0]) for teacher in (TEACHER, other))
        added.append(two - one)
    assert added[1] == pytest.approx(added[0] / 2, rel=1e-3)
    assert abs(added[0]) > 1


def test_the_objective_is_the_mean_over_tokens_of_both():
    found = jax.jit(coupled_idlm_loss(STUDENT_MODEL, DIFFUSION, CONFIG))(
        PARAMS, {"teacher_params": TEACHER}, np.zeros(SHAPE, np.int32), KEY
    )
    student, fake = terms(PARAMS, TEACHER)
    assert float(found.total) == pytest.approx(float(student + fake), rel=1e-5)
    assert float(found.weight) == SHAPE[0] * SHAPE[1]
    assert float(found.metrics["student_loss"]) == pytest.approx(
        float(student) / (SHAPE[0] * SHAPE[1]), rel=1e-5
    )


def test_a_student_that_sees_no_noise_and_a_wrong_field_are_refused():
    with pytest.raises(ConfigError, match="needs a student that sees noise"):
        coupled_idlm_terms(DIFFUSION, DIFFUSION, PARAMS, TEACHER, SHAPE, KEY, CONFIG)
    with pytest.raises(ConfigError, match="full_share must lie in"):
        CoupledIdlmConfig(1.5)
    with pytest.raises(ConfigError, match="teacher_temperature"):
        CoupledIdlmConfig(teacher_temperature=-1.0)
