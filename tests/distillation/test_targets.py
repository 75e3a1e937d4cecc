"""Teacher targets. Oracle: a plain Python loop that stores `[B, L, V]` log-probabilities step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import masked_log_probs, q_xt
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.distillation.targets import step_times, stitch, teacher_targets
from sdtt_jax.errors import ConfigError
from tests.worlds import (
    LENGTH,
    MASK,
    TableDenoiser,
    draw_each,
    noisy_params,
    random_table,
    tiny_network,
)

SCHEDULE = make_schedule()
KEEP = 1 - 1e-3
# Its predictions depend on the time that it is told, so that a wrong sigma shows.
TIMED, TABLE = TableDenoiser(time_scale=0.2), random_table(2)
BATCH, TRAJECTORIES = 256, 3
DT = 0.06
_targets = jax.jit(teacher_targets, static_argnames=("diffusion", "config"))


_times = jax.jit(step_times, static_argnums=2, static_argnames="reference_times")


def targets_of(denoiser, params, keys, x_t, t, dt, **options):
    diffusion, config = MaskedDiffusion(denoiser, SCHEDULE), DistillConfig(**options)
    return _targets(diffusion, params, keys, x_t, t, jnp.float32(dt), config)


@jax.jit
def _batch(seed):
    """Times in [0.05, 1], and texts of the world masked at them."""
    key_t, key_x, key_mask = jax.random.split(jax.random.key(seed), 3)
    t = jax.random.uniform(key_t, (BATCH,), minval=0.05, maxval=1.0)
    x0 = jax.random.randint(key_x, (BATCH, LENGTH), 0, MASK)
    return t, q_xt(key_mask, x0, SCHEDULE.move_chance(t), MASK)


@functools.partial(jax.jit, static_argnames="count")
def _keys(seed, count=TRAJECTORIES):
    return jax.random.split(jax.random.key(seed), count)


@functools.partial(jax.jit, static_argnames="denoiser")
def _log_probs(denoiser, params, targets):
    return masked_log_probs(denoiser.logits(params, targets), MASK)


def python_targets(denoiser, params, key, x_t, t, dt, k):
    """`[B, L, V]` log-probabilities: each masked position's at the step that reveals it, else the last."""

    x = x_t
    stored = np.zeros((*x_t.shape, denoiser.padded_vocab))
    for i in range(k):
        now = np.maximum(np.asarray(t, np.float64) - i * dt, 1e-5)
        sigma = (-np.log1p(-KEEP * now)).astype(np.float32)
        logits, log_probs = _called(denoiser, params, x, sigma)
        still = np.asarray(x) == MASK
        stored[still] = np.asarray(log_probs)[still]
        # t - i dt may be past 0 before this step or after it: everything is revealed then.
        after = np.maximum(now - dt, 0.0)
        x = _revealed(
            jax.random.fold_in(key, i), x, logits, ((now - after) / now).astype(np.float32)
        )
    return stored


@functools.partial(jax.jit, static_argnames="denoiser")
def _called(denoiser, params, x, sigma):
    """The logits of tokens, and the log-probabilities of all columns."""
    logits = denoiser.logits(params, denoiser.hidden(params, x, sigma)).at[..., MASK].add(-1e6)
    return logits[..., :MASK], jax.nn.log_softmax(logits, axis=-1)


@jax.jit
def _revealed(key, x, logits, chance):
    key_position, key_token = jax.random.split(key)
    hit = jax.random.uniform(key_position, x.shape) < chance[:, None]
    return jnp.where((x == MASK) & hit, draw_each(key_token, logits), x)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_one_key_is_not_an_array_of_keys(make):
    t, x_t = _batch(0)
    with pytest.raises(ConfigError, match="keys must be an array of keys"):
        targets_of(TIMED, TABLE, make(0), x_t, t, DT)
    with pytest.raises(ConfigError, match="keys must be an array of keys"):
        targets_of(TIMED, TABLE, [make(0)], x_t, t, DT)
    # The loss of no trajectories divided by 0.
    with pytest.raises(ConfigError, match="at least one trajectory"):
        targets_of(TIMED, TABLE, jax.random.split(make(0), 0), x_t, t, DT)
    found = jax.eval_shape(lambda key: targets_of(TIMED, TABLE, key[None], x_t, t, DT), make(0))
    assert found.shape == (1, BATCH, LENGTH, 3)


@pytest.mark.parametrize("k", [2, 8])
def test_targets_equal_a_plain_loop(k):
    t, x_t = _batch(0)
    keys = _keys(1)
    ours = targets_of(TIMED, TABLE, keys, x_t, t, DT, num_distill_steps=k)
    assert ours.shape == (TRAJECTORIES, BATCH, LENGTH, 3)
    log_probs = np.asarray(_log_probs(TIMED, TABLE, ours))
    masked = np.asarray(x_t) == MASK
    for key, found in zip(keys, log_probs, strict=True):
        twin = python_targets(TIMED, TABLE, key, x_t, t, DT, k)
        np.testing.assert_allclose(found[masked][:, :MASK], twin[masked][:, :MASK], atol=2e-5)
    # Trajectories differ where a later call matters, and agree where the first call revealed.
    spread = np.ptp(log_probs[..., :MASK], axis=0).max(axis=-1)
    assert 0.05 < (spread[masked] > 0.01).mean() < 1


def test_targets_of_the_network_equal_a_plain_loop():
    """The real network, time-conditioned; k = 4."""
    denoiser = tiny_network(time_conditioned=True)
    params = noisy_params(denoiser, 3)
    t, x_t = _batch(4)
    keys = _keys(5, 1)
    [ours] = targets_of(denoiser, params, keys, x_t, t, DT, num_distill_steps=4)
    log_probs = np.asarray(_log_probs(denoiser, params, ours))
    twin = python_targets(denoiser, params, keys[0], x_t, t, DT, 4)
    masked = np.asarray(x_t) == MASK
    np.testing.assert_allclose(
        log_probs[masked][:, :MASK], twin[masked][:, :MASK], rtol=1e-4, atol=1e-4
    )


def test_first_call_is_shared_and_the_last_draw_is_not_made():
    """1 + M (k - 1) calls instead of M k; one compilation serves all step sizes."""
    calls, traces = [], []
    denoiser = TableDenoiser(on_call=lambda: calls.append(1))
    t, x_t = _batch(6)

    @jax.jit
    def targets(dt):
        traces.append(1)
        return targets_of(denoiser, TABLE, _keys(7, 4), x_t, t, dt, num_distill_steps=3)

    small = jax.device_get(targets(np.float32(0.01)))
    jax.effects_barrier()
    assert len(calls) == 1 + 4 * (3 - 1)
    large = jax.device_get(targets(np.float32(0.2)))
    jax.effects_barrier()
    assert len(traces) == 1
    assert (small != large).any()


def test_no_gradient_reaches_the_teacher():
    t, x_t = _batch(8)

    def total(params):
        return targets_of(TIMED, params, _keys(9), x_t, t, DT).sum()

    assert (np.asarray(jax.jit(jax.grad(total))(TABLE)["table"]) == 0).all()


def test_a_huge_step_reveals_everything_at_once():
    """dt >= t: every target is the teacher at x_t itself."""
    t, x_t = _batch(12)
    targets = targets_of(TIMED, TABLE, _keys(13), x_t, t, 1.0)
    first = jax.jit(lambda: TIMED.hidden(TABLE, x_t, SCHEDULE.sigma(t)))()
    np.testing.assert_allclose(targets, np.broadcast_to(first, targets.shape), rtol=1e-6)


def test_share_of_positions_that_keep_the_first_call():
    """Positions that the first step reveals, and all positions of a text in which it reveals nothing.

    t = 0.5; n = 60,000 positions in 20,000 texts, standard error below 3e-3, seed 14.
    """
    plain, table = TableDenoiser(), random_table(3)
    x_t = np.full((20_000, LENGTH), MASK, np.int32)
    t = np.full(20_000, 0.5, np.float32)
    [target] = targets_of(plain, table, _keys(14, 1), x_t, t, DT)
    first = np.asarray(table["table"])[-1]  # at all MASK
    same = (np.asarray(target) == first).all(axis=-1)
    r = DT / 0.5
    expected = r + (1 - r) ** LENGTH
    # Positions of one text are correlated: count only as many draws as texts.
    error = np.sqrt(expected * (1 - expected) / len(x_t))
    assert abs(float(same.mean()) - expected) < 4 * error


def test_stitch_keeps_what_is_revealed():
    x = np.array([[MASK, 1, MASK]], np.int32)
    old, new = np.zeros((1, 3, 2), np.float32), np.ones((1, 3, 2), np.float32)
    found = np.asarray(stitch(old, new, x, MASK))
    np.testing.assert_array_equal(found[0, :, 0], [1, 0, 1])


def test_step_times_of_the_paper():
    times = _times(np.float32([0.5, 0.1]), np.float32(0.2), 3)
    np.testing.assert_allclose(times, [[0.5, 0.1], [0.3, 1e-5], [0.1, 1e-5]], rtol=1e-6)


def test_step_times_of_the_reference_code():
    """golden/README: max(t s + (1 - t)(t - K dt), 1e-5), s from 1 to 0 (an interpolation slip)."""
    t, dt, k = np.array([0.3, 0.5, 0.9]), 0.05, 4
    expected = [np.maximum(t * s + (1 - t) * (t - k * dt), 1e-5) for s in np.linspace(1, 0, k)]
    times = _times(np.float32(t), np.float32(dt), k, reference_times=True)
    np.testing.assert_allclose(times, expected, rtol=1e-5)


def test_reference_times_change_the_targets():
    t, x_t = _batch(15)
    arguments = (TIMED, TABLE, _keys(16), x_t, t, DT)
    paper = targets_of(*arguments)
    reference = targets_of(*arguments, reference_times=True)
    assert (np.asarray(paper) != np.asarray(reference)).any()
