"""Inverse distillation. Oracle: the same sums over whole distributions, text by text in NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import q_xt, sample_t
from sdtt_jax.diffusion.nelbo import nelbo_weight
from sdtt_jax.diffusion.reverse import reverse_step
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.block import draw_block
from sdtt_jax.distillation.idlm import FAKE, STUDENT, IdlmConfig, idlm_terms
from sdtt_jax.errors import ConfigError
from sdtt_jax.objectives import idlm_loss
from tests.worlds import LENGTH, MASK, VOCAB, TableDenoiser, numbers, random_table

SCHEDULE = make_schedule()
DIFFUSION = MaskedDiffusion(TableDenoiser(), SCHEDULE)
# Its predictions depend on the time that it is passed.
TIMED = MaskedDiffusion(TableDenoiser(time_scale=0.2), SCHEDULE)
TEACHER, TABLES = random_table(1), {STUDENT: random_table(2), FAKE: random_table(3)}
X0, KEY = np.tile(np.array([[0, 1, 2], [2, 2, 0]], np.int32), (16, 1)), jax.random.key(4)
CONFIG = IdlmConfig(num_calls=2)


def terms(params, teacher, config=CONFIG, diffusion=DIFFUSION):
    """Both losses, and the gradients of each for the parameters and for the teacher."""
    return jax.device_get(_terms(params, teacher, config, diffusion))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _terms(params, teacher, config, diffusion):
    def both(params, teacher):
        found = jnp.stack(idlm_terms(diffusion, params, teacher, X0, KEY, config))
        return found, found

    gradients, found = jax.jacrev(both, argnums=(0, 1), has_aux=True)(params, teacher)
    return found, gradients


@jax.jit
def states():
    """The student's state and completion, remasked, each text's weight, and the noise at both times."""
    key_block, key_draw, key_t, key_mask = jax.random.split(KEY, 4)
    x_t, sigma, *_ = draw_block(TIMED, X0, key_block, CONFIG.num_calls)
    hidden = TIMED.hidden(TABLES[STUDENT], x_t, sigma)
    drawn = reverse_step(TIMED, TABLES[STUDENT], key_draw, x_t, hidden, jnp.ones(len(X0)))
    t = sample_t(key_t, len(X0))
    again = q_xt(key_mask, drawn, SCHEDULE.move_chance(t), MASK)
    return x_t, drawn, again, nelbo_weight(SCHEDULE, t), sigma, SCHEDULE.sigma(t)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_both_losses_are_sums_over_the_students_distributions(temperature):
    x_t, drawn, again, weights, sigma, later = (np.asarray(x) for x in states())

    def predicted(table, x, sigma):
        logits = np.float64(table["table"][numbers(x)])
        return np.exp(log_softmax(logits * (1 + 0.2 * sigma), axis=-1))

    student_sum = fake_sum = 0.0
    for b, i in np.argwhere(again == MASK):
        p = predicted(TABLES[STUDENT], x_t[b], sigma[b])[i]
        p = p if x_t[b, i] == MASK else np.eye(VOCAB)[drawn[b, i]]
        fake, teacher = (
            predicted(table, again[b], later[b])[i] for table in (TABLES[FAKE], TEACHER)
        )
        fake_sum -= weights[b] * (p * np.log(fake)).sum()
        if x_t[b, i] == MASK:
            student_sum += weights[b] * (p * (np.log(fake) - np.log(teacher) / temperature)).sum()
    found, _ = terms(TABLES, TEACHER, IdlmConfig(2, teacher_temperature=temperature), TIMED)
    assert float(found[0]) == pytest.approx(student_sum, rel=1e-4)
    assert float(found[1]) == pytest.approx(fake_sum, rel=1e-4)


def test_each_loss_trains_its_own_network_and_neither_the_teacher():
    _, (params, teacher) = terms(TABLES, TEACHER)
    for index, (own, other) in enumerate(((STUDENT, FAKE), (FAKE, STUDENT))):
        assert (params[own]["table"][index] != 0).any()
        assert np.isfinite(params[own]["table"][index]).all()
        assert (params[other]["table"][index] == 0).all()
        assert (teacher["table"][index] == 0).all()


@dataclasses.dataclass(frozen=True)
class Biased(TableDenoiser):
    """A table whose head has parameters of its own."""

    def head_params(self, params):
        return {"bias": params["bias"]}

    def logits(self, params, hidden):
        return super().logits({}, hidden + params["bias"])


def test_each_networks_states_go_to_its_own_head_at_the_same_time():
    """Oracle: the same predictions from a network whose head has no parameters."""

    def split(table, bias):
        return {
            "table": table["table"] - np.float32([0, bias, -bias]),
            "bias": jnp.float32([0, bias, -bias]),
        }

    @jax.jit
    def both():
        found = []
        for kind, change in ((TableDenoiser, lambda table, _: table), (Biased, split)):
            params = {name: change(TABLES[name], i) for i, name in enumerate(TABLES, start=2)}
            diffusion = MaskedDiffusion(kind(), SCHEDULE)
            found.append(idlm_terms(diffusion, params, change(TEACHER, 1), X0, KEY, CONFIG))
        return found

    np.testing.assert_allclose(*jax.device_get(both()), rtol=1e-4)


def test_a_fake_that_is_the_teacher_teaches_nothing():
    params = {STUDENT: TABLES[STUDENT], FAKE: TEACHER}
    (student, _), _ = terms(params, TEACHER)
    assert float(student) == pytest.approx(0.0, abs=1e-4)


def test_the_optimum_is_the_teachers_law_at_its_temperature():
    """If tokens are independent, p is the denoiser of the texts that p writes, so p is the best fake."""

    def independent(table):
        """One distribution for each position, whatever the state."""
        return {"table": np.broadcast_to(np.float32(table), TEACHER["table"].shape)}

    def gradient(fake, config):
        """Of the student's loss for its one distribution, where the fake has it too."""
        params = {STUDENT: independent(fake), FAKE: independent(fake)}
        _, (of_params, _) = terms(params, independent(log_law), config)
        return of_params[STUDENT]["table"][0].sum(axis=0)

    log_law = log_softmax(np.asarray(TEACHER["table"][0]), axis=-1)
    for temperature, other in ((1.0, 1.5), (1.5, 1.0)):
        config = IdlmConfig(2, teacher_temperature=temperature)
        np.testing.assert_allclose(gradient(log_law / temperature, config), 0, atol=1e-4)
        assert np.abs(gradient(log_law / other, config)).max() > 0.1


def test_the_objective_is_the_mean_over_tokens_of_both():
    loss = jax.jit(idlm_loss(DIFFUSION, CONFIG))(TABLES, {"teacher_params": TEACHER}, X0, KEY)
    (student, fake), _ = terms(TABLES, TEACHER)
    assert float(loss.total) == pytest.approx(float(student + fake), rel=1e-5)
    assert float(loss.weight) == X0.size == len(X0) * LENGTH
    assert float(loss.metrics["fake_loss"]) == pytest.approx(float(fake) / X0.size, rel=1e-5)


def test_a_wrong_field_is_named():
    with pytest.raises(ConfigError, match="num_calls"):
        IdlmConfig(num_calls=0)
    with pytest.raises(ConfigError, match="teacher_temperature"):
        IdlmConfig(teacher_temperature=0.0)
