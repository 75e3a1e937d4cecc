"""The distillation loss. Oracle: the same sums written out position by position in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import q_xt, sample_t
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.divergence import DIVERGENCES
from sdtt_jax.distillation.loss import distillation_terms, divergence_terms
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.distillation.targets import teacher_targets
from sdtt_jax.errors import ConfigError
from tests.worlds import (
    LENGTH,
    MASK,
    VOCAB,
    TableDenoiser,
    noisy_params,
    predictions,
    random_table,
    tiny_network,
)

SCHEDULE = make_schedule()
WORLD, STUDENT, TEACHER = TableDenoiser(), random_table(20), random_table(21)
DIFFUSION = MaskedDiffusion(WORLD, SCHEDULE)
X_T = np.array([[MASK, 1, MASK], [0, MASK, 2], [2, 1, 0]], np.int32)
TARGETS = np.asarray(TEACHER["table"])[np.array([[5, 17, 40], [8, 9, 63]])]  # two trajectories


@jax.jit
def _each(x_t):
    """Total and count of each divergence, and the gradient of their quotient: one program for all."""

    def mean(student, divergence):
        terms = _terms(student, divergence, x_t)
        return terms[0] / jnp.maximum(terms[1], 1), terms

    gradients = jax.grad(mean, has_aux=True)
    return {name: gradients(STUDENT, name) for name in DIVERGENCES}


def _terms(student, divergence, x_t=X_T, targets=TARGETS):
    sigma = jnp.zeros(len(x_t))
    return divergence_terms(DIFFUSION, student, TEACHER, x_t, sigma, targets, divergence)


def _softmax(x):
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_sum_over_masked_positions_and_mean_over_trajectories():
    student = predictions(WORLD, STUDENT)
    numbers = np.asarray(X_T) @ [16, 4, 1]
    total = 0.0
    for b, i in np.argwhere(np.asarray(X_T) == MASK):
        p = student[numbers[b], i]
        for trajectory in _softmax(np.asarray(TARGETS, np.float64)):
            total += (p * np.log(p / trajectory[b, i])).sum() / len(TARGETS)
    _, (ours, count) = _each(X_T)["kl-bwd"]
    assert int(count) == 3
    assert float(ours) == pytest.approx(total, rel=1e-5)


def test_an_unknown_divergence_is_named():
    with pytest.raises(ConfigError, match=r"divergence='kl' is unknown.*kl-bwd"):
        _terms(STUDENT, "kl")


def test_targets_of_another_batch_are_refused_within_jit_too():
    """One text's targets for three would give a plausible loss."""
    with pytest.raises(ConfigError, match=r"not \[3, 3\] and \[1, 3, 2, 3\]"):
        jax.eval_shape(lambda: _terms(STUDENT, "kl-bwd", targets=TARGETS[:, :1]))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_unmasked_positions_get_no_gradient(name):
    gradient = np.asarray(_each(X_T)[name][0]["table"])
    assert np.isfinite(gradient).all()
    touched = np.argwhere(np.abs(gradient).sum(axis=-1) > 0)
    expected = [[2 * 0 + MASK * 16 + 4 + MASK, 0], [MASK * 16 + 4 + MASK, 2], [MASK * 4 + 2, 1]]
    assert sorted(touched.tolist()) == sorted(expected)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_batch_without_masks_gives_zero(name):
    gradient, (value, count) = _each(np.zeros_like(X_T))[name]
    assert float(value) == float(count) == 0
    assert (np.asarray(gradient["table"]) == 0).all()


@pytest.mark.parametrize("k", [2, 4])
def test_a_student_that_is_its_teacher_sees_only_the_later_steps(k):
    """With dt = 1 the first teacher step reveals all: the divergence of the teacher from itself is 0.

    One compilation serves all rounds, which differ in dt.
    """
    x0 = np.random.default_rng(0).integers(0, VOCAB, (64, LENGTH)).astype(np.int32)
    config, traces = DistillConfig(num_distill_steps=k, num_trajectories=2), []

    @jax.jit
    def loss(dt):
        traces.append(1)
        total, count = distillation_terms(
            DIFFUSION, TEACHER, TEACHER, x0, dt, jax.random.key(1), config
        )
        return total / count

    assert abs(float(loss(np.float32(1.0)))) < 1e-6
    assert float(loss(np.float32(0.1))) > 0.01
    assert len(traces) == 1


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_loss_is_algorithm_1_with_a_key_for_each_draw_and_trajectory(antithetic):
    """Oracle: the algorithm's steps, each of which has its own tests; predictions depend on the time."""
    config = DistillConfig(divergence="kl-fwd", num_trajectories=2, antithetic=antithetic)
    x0 = np.random.default_rng(4).integers(0, VOCAB, (32, LENGTH)).astype(np.int32)
    timed, dt, key = (
        MaskedDiffusion(TableDenoiser(time_scale=0.2), SCHEDULE),
        0.1,
        jax.random.key(5),
    )

    @jax.jit
    def both():
        key_t, key_mask, key_teacher = jax.random.split(key, 3)
        t = sample_t(key_t, len(x0), antithetic=antithetic)
        x_t = q_xt(key_mask, x0, SCHEDULE.move_chance(t), MASK)
        targets = teacher_targets(
            timed, TEACHER, jax.random.split(key_teacher, 2), x_t, t, dt, config
        )
        by_hand = divergence_terms(
            timed, STUDENT, TEACHER, x_t, SCHEDULE.sigma(t), targets, "kl-fwd"
        )
        return by_hand, distillation_terms(timed, STUDENT, TEACHER, x0, dt, key, config)

    np.testing.assert_allclose(*jax.device_get(both()), rtol=1e-5)


def test_gradient_reaches_the_student_and_not_the_teacher():
    denoiser = tiny_network()
    student, teacher = noisy_params(denoiser, 1), noisy_params(denoiser, 2)
    x0 = np.random.default_rng(2).integers(0, VOCAB, (16, LENGTH)).astype(np.int32)

    def loss(student, teacher):
        total, count = distillation_terms(
            MaskedDiffusion(denoiser, SCHEDULE),
            student,
            teacher,
            x0,
            jnp.float32(0.1),
            jax.random.key(3),
            DistillConfig(),
        )
        return total / count

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(student, teacher)
    to_student, to_teacher = jax.device_get(gradients)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(to_teacher))
    moved = jax.tree_util.tree_leaves_with_path(to_student)
    still = [jax.tree_util.keystr(path) for path, leaf in moved if not (leaf != 0).any()]
    assert still == [], "every parameter of the student should learn"
    assert all(np.isfinite(leaf).all() for _, leaf in moved)
