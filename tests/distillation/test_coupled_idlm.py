"""Inverse distillation of a noise-coupled student. Oracles: a generation of two calls, and sums by hand."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.reverse import reverse_step
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation import coupled_idlm
from sdtt_jax.distillation.coupled_idlm import CoupledIdlmConfig, coupled_idlm_terms
from sdtt_jax.distillation.idlm import FAKE, STUDENT, inverse_terms
from sdtt_jax.distillation.trajectories import noise_of
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.config import CoupledConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.objectives import coupled_idlm_loss
from sdtt_jax.ops.noise import Noise
from sdtt_jax.training.step import Loss
from tests.worlds import LENGTH, MASK, TableDenoiser, noisy_params, random_table, tiny_network

# As many columns as the network has, which pads its vocabulary.
DIFFUSION = MaskedDiffusion(TableDenoiser(padded_vocab=128), make_schedule())
SIZES = tiny_network(time_conditioned=True).config
NETWORK = CoupledDenoiser(CoupledConfig.of(SIZES, NoiseConfig(hidden_dim=8)))
STUDENT_MODEL = MaskedDiffusion(NETWORK, make_schedule())
TEACHER = random_table(1)
SHAPE, KEY, CONFIG = (32, LENGTH), jax.random.key(4), CoupledIdlmConfig(full_share=0.25)
HOTTER = dataclasses.replace(CONFIG, teacher_temperature=2.0)


@functools.cache
def params_of_both():
    return {STUDENT: noisy_params(NETWORK, 2), FAKE: random_table(3)}


class Found(NamedTuple):
    """What one program finds, which serves every test.

    Attributes:
      loss: the objective's.
      terms: the student's loss and the fake's.
      hotter: both at a teacher's temperature of 2.
      noise: drawn once more, as the student must have drawn it.
      x_t, hidden: what the student saw at last, and its states there.
      gradients: of the sum of `weights * terms`, for `params` and for the teacher.
    """

    loss: Loss
    terms: tuple
    hotter: tuple
    noise: Noise
    x_t: jax.Array
    hidden: jax.Array
    gradients: tuple


@jax.jit
def _find(params, teacher, weights):
    def total(params, teacher):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coupled_idlm, "inverse_terms", watched)
            found = coupled_idlm_loss(STUDENT_MODEL, DIFFUSION, CONFIG)(
                params, {"teacher_params": teacher}, np.zeros(SHAPE, np.int32), KEY
            )
        return found.total, (found, *seen)

    def watched(*arguments):
        """`inverse_terms`, each times its weight."""
        *given, config = arguments
        assert config is CONFIG
        terms, hotter = inverse_terms(*arguments), inverse_terms(*given, HOTTER)
        _, _, _, _, x_t, hidden, _ = given
        seen.extend(jax.lax.stop_gradient((terms, hotter, x_t, hidden)))
        return tuple(w * term for w, term in zip(weights, terms, strict=True))

    seen = []
    gradients, found = jax.grad(total, argnums=(0, 1), has_aux=True)(params, teacher)
    loss, terms, hotter, x_t, hidden = found
    keys = jax.random.split(jax.random.split(KEY, 6)[0], SHAPE[0])
    return Found(loss, terms, hotter, noise_of(STUDENT_MODEL, keys, LENGTH), x_t, hidden, gradients)


def find(params=None, teacher=TEACHER, weights=(1.0, 1.0)):
    return jax.device_get(_find(params or params_of_both(), teacher, weights))


@functools.cache
def found():
    return find()


def test_it_learns_where_a_generation_begins_and_within_its_own_text():
    """The first positions in the order of the noise are revealed: none of them in a quarter of the 32 texts,
    the full share, and each number equally often in the others."""
    noise, x_t = found().noise, found().x_t
    ranks = np.argsort(np.argsort(-noise.order, axis=-1), axis=-1)
    masked = x_t == MASK
    count = LENGTH - masked.sum(axis=-1)
    np.testing.assert_array_equal(~masked, ranks < count[:, None])
    np.testing.assert_allclose(np.bincount(count, minlength=LENGTH), [16, 8, 8], atol=1)


def test_the_student_is_shown_the_noise_that_its_text_was_made_of():
    noise, x_t, hidden = found().noise, found().x_t, found().hidden
    # The time of a state is that of the next position in the order.
    sigma = -np.log1p(-0.999 * np.where(x_t == MASK, noise.order, 0).max(axis=1))
    call = jax.jit(STUDENT_MODEL.hidden)
    np.testing.assert_allclose(
        call(params_of_both()[STUDENT], x_t, sigma, noise), hidden, atol=1e-5
    )
    other = jax.tree.map(lambda x: x[::-1], noise)
    assert np.abs(call(params_of_both()[STUDENT], x_t, sigma, other) - hidden).max() > 1e-2


def test_the_students_text_is_one_call_at_time_1():
    """Oracle: the reverse step from all MASK, with the same noise and key."""

    @jax.jit
    def texts(params, noise):
        begin, ones = np.full(SHAPE, MASK, np.int32), np.ones(SHAPE[0], np.float32)
        hidden = STUDENT_MODEL.hidden(params, begin, STUDENT_MODEL.schedule.sigma(ones), noise)
        return reverse_step(STUDENT_MODEL, params, jax.random.split(KEY, 6)[1], begin, hidden, ones)

    shown = found().x_t != MASK
    text = np.asarray(texts(params_of_both()[STUDENT], found().noise))
    np.testing.assert_array_equal(found().x_t[shown], text[shown])


def test_each_loss_trains_its_own_network_and_neither_the_teacher():
    for own, other, weights in ((STUDENT, FAKE, (1.0, 0.0)), (FAKE, STUDENT, (0.0, 1.0))):
        of_params, of_teacher = find(weights=weights).gradients
        moved = jax.tree.map(lambda g: np.abs(g).max(), of_params)
        assert np.isfinite(jax.tree.leaves(moved)).all()
        assert sum(jax.tree.leaves(moved[own])) > 0 == sum(jax.tree.leaves(moved[other]))
        assert (of_teacher["table"] == 0).all()
        if own == STUDENT:  # The parameters that read the noise are trained too.
            assert sum(jax.tree.leaves(moved[STUDENT]["noise"])) > 0


def test_a_fake_that_is_the_teacher_teaches_nothing():
    student, _ = find({STUDENT: params_of_both()[STUDENT], FAKE: TEACHER}).terms
    assert float(student) == pytest.approx(0.0, abs=1e-4)


def test_the_teachers_temperature_divides_what_the_teacher_says():
    """What another teacher's log-probabilities add to the loss is halved at temperature 2."""
    one, two = found(), find(teacher=random_table(5))
    added = two.terms[0] - one.terms[0]
    assert two.hotter[0] - one.hotter[0] == pytest.approx(added / 2, rel=1e-3)
    assert abs(added) > 1


def test_the_objective_is_the_mean_over_tokens_of_both():
    loss, (student, fake) = found().loss, found().terms
    assert float(loss.total) == pytest.approx(float(student + fake), rel=1e-5)
    assert float(loss.weight) == SHAPE[0] * SHAPE[1]
    for name, term in (("student_loss", student), ("fake_loss", fake)):
        assert float(loss.metrics[name]) == pytest.approx(
            float(term) / (SHAPE[0] * SHAPE[1]), rel=1e-5
        )


def test_it_needs_no_numbers_of_mixed_dtypes():
    """Oracle: JAX's own strict rules."""
    with jax.numpy_dtype_promotion("strict"):
        terms = (STUDENT_MODEL, DIFFUSION, params_of_both(), TEACHER, SHAPE, KEY, CONFIG)
        assert len(jax.eval_shape(lambda: coupled_idlm_terms(*terms))) == 2


def test_a_student_that_sees_no_noise_and_a_wrong_field_are_refused():
    with pytest.raises(ConfigError, match="needs a student that sees noise"):
        coupled_idlm_terms(DIFFUSION, DIFFUSION, params_of_both(), TEACHER, SHAPE, KEY, CONFIG)
    with pytest.raises(ConfigError, match=r"at least one text of one token, not \[0, 3\]"):
        coupled_idlm_terms(DIFFUSION, DIFFUSION, params_of_both(), TEACHER, (0, 3), KEY, CONFIG)
    with pytest.raises(ConfigError, match="full_share must lie in"):
        CoupledIdlmConfig(1.5)
    with pytest.raises(ConfigError, match="teacher_temperature"):
        CoupledIdlmConfig(teacher_temperature=-1.0)
