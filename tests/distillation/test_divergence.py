"""Divergences. Oracles: SciPy and NumPy on probabilities, numerical derivatives."""

import functools
import math

import jax
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from sdtt_jax.diffusion.forward import masked_log_probs
from sdtt_jax.distillation.divergence import DIVERGENCES, kl_bwd

TOKENS, PADDED = 6, 12  # tokens with MASK (the last), columns with padding
MASK_ID = TOKENS - 1


def _logits(seed, shape):
    logits = 1.5 * np.random.default_rng(seed).standard_normal((*shape, PADDED), np.float32)
    return np.where(np.arange(PADDED) < TOKENS, logits, np.float32(-1e6))


def _log_probs(seed, shape):
    """As `masked_log_probs` gives them, always by the same program."""
    rows = np.zeros((100, PADDED), np.float32)
    count = math.prod(shape)
    rows[:count] = _logits(seed, (count,))
    return np.asarray(_masked(rows))[:count].reshape(*shape, PADDED)


_masked = jax.jit(functools.partial(masked_log_probs, mask_id=MASK_ID))


@functools.partial(jax.jit, static_argnames=("name", "num_entries"))
def _divergence(name, student, target, num_entries=TOKENS):
    return DIVERGENCES[name](student, target, num_entries)


def _expected(name, p_log, q_log):
    p, q = np.exp(p_log), np.exp(q_log)
    return {
        "kl-bwd": special.rel_entr(p, q).sum(-1),
        "kl-fwd": special.rel_entr(q, p).sum(-1),
        "mse": ((p_log - q_log)[..., :TOKENS] ** 2).mean(-1),
        "tvd": np.abs(p - q).sum(-1) / 2,
        "log-l1": np.abs(p_log - q_log)[..., :TOKENS].sum(-1),
    }[name]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_values(name):
    student, target = _log_probs(0, (4, 25)), _log_probs(1, (4, 25))
    value = _divergence(name, student, target)
    assert value.shape == (4, 25)
    expected = _expected(name, np.asarray(student, np.float64), np.asarray(target, np.float64))
    # With p = 0 at MASK and padding, SciPy's 0 log 0 is 0 too.
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_zero_for_equals_and_never_negative(name):
    student, target = _log_probs(2, (4, 25)), _log_probs(3, (4, 25))
    assert (np.asarray(_divergence(name, student, student)) == 0).all()
    assert (np.asarray(_divergence(name, student, target)) > 0).all()


def test_total_variation_is_at_most_one():
    ends = np.array([[0.0, -1e6], [-1e6, 0.0]], np.float32)
    assert float(_divergence("tvd", ends[0], ends[1], 2)) == 1.0


def test_the_two_kl_are_each_other_with_sides_swapped():
    student, target = _log_probs(4, (4, 25)), _log_probs(5, (4, 25))
    np.testing.assert_allclose(
        _divergence("kl-bwd", student, target),
        _divergence("kl-fwd", target, student),
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_are_those_of_numerical_differences(name):
    """Of plain log-softmax over 5 tokens in float64; the kinks of tvd and log-l1 are not met."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(6)
        student, target = rng.normal(size=(2, 3, 5))
        target = special.log_softmax(target, axis=-1)

        @jax.jit
        def mean(logits):
            return DIVERGENCES[name](jax.nn.log_softmax(logits), target, 5).mean()

        check_grads(mean, (student,), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("impossible", [-1e6, -np.inf])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_are_finite_where_impossible_tokens_meet(name, impossible):
    """MASK, padding and a token on both sides; and a target that excludes one the student allows."""
    student, target = _logits(8, (3,)), _logits(7, (3,))
    target[:, 0] = student[:, TOKENS:] = target[:, TOKENS:] = impossible
    student[:, 1] = target[:, 1] = impossible

    def mean(logits):
        log_probs = (masked_log_probs(x, MASK_ID) for x in (logits, target))
        return DIVERGENCES[name](*log_probs, TOKENS).mean()

    value, gradient = jax.jit(jax.value_and_grad(mean))(student)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_padding_columns_change_nothing(name):
    student, target = _log_probs(9, (4,)), _log_probs(10, (4,))

    def value_and_gradient(columns):
        def total(x):
            return DIVERGENCES[name](x, target[:, :columns], TOKENS).sum()

        return jax.device_get(jax.jit(jax.value_and_grad(total))(student[:, :columns]))

    padded, padded_gradient = value_and_gradient(PADDED)
    bare, bare_gradient = value_and_gradient(TOKENS)
    np.testing.assert_allclose(padded, bare, rtol=1e-6)
    np.testing.assert_allclose(padded_gradient[:, :TOKENS], bare_gradient, rtol=1e-6)
    assert (padded_gradient[:, TOKENS:] == 0).all()


def test_mean_kl_bwd_over_targets_is_that_to_their_mean_log_probability():
    """Up to a constant: the gradients are equal, the values differ by the floor -log Z at the optimum."""
    targets = _log_probs(11, (8, 3))
    mean_log = targets.mean(axis=0)
    geometric = jax.nn.log_softmax(mean_log[:, :MASK_ID])
    geometric = np.pad(geometric, ((0, 0), (0, PADDED - MASK_ID)), constant_values=-1e6)

    @jax.jit
    @jax.value_and_grad
    def over_targets(logits):
        student = masked_log_probs(logits, MASK_ID)
        return kl_bwd(student, targets, TOKENS).mean(axis=0).sum()

    @jax.jit
    @jax.value_and_grad
    def to_mean(logits):
        return kl_bwd(masked_log_probs(logits, MASK_ID), geometric, TOKENS).sum()

    logits = _logits(12, (3,))
    (over, gradient), (to, expected) = jax.device_get((over_targets(logits), to_mean(logits)))
    np.testing.assert_allclose(gradient, expected, atol=2e-6)
    floor = -special.logsumexp(mean_log, axis=-1).sum()
    assert float(over_targets(geometric)[0]) == pytest.approx(floor, rel=1e-5)
    assert float(over - to) == pytest.approx(floor, rel=1e-4)
    assert floor > 0.1
