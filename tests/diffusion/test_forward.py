"""The forward process and SUBS. Oracles: definitions, exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.forward import (
    SAMPLING_EPS,
    mask_tokens,
    masked_log_probs,
    q_xt,
    sample_t,
    subs_log_probs,
    token_nll,
)
from sdtt_jax.errors import ConfigError
from sdtt_jax.ops.categorical import NEG_INFINITY

MASK_ID, PADDED = 5, 8


def _logits(seed, *shape):
    logits = 3 * np.random.default_rng(seed).standard_normal((*shape, PADDED), np.float32)
    return np.where(np.arange(PADDED) <= MASK_ID, logits, np.float32(NEG_INFINITY))


_masked_log_probs = jax.jit(masked_log_probs, static_argnames="mask_id")
_subs_log_probs = jax.jit(subs_log_probs, static_argnames="mask_id")


def test_antithetic_times_cover_the_range_evenly():
    t = np.sort(np.asarray(sample_t(jax.random.key(0), 64)))
    np.testing.assert_allclose(np.diff(t), 1 / 64, rtol=1e-3)
    assert t[0] >= SAMPLING_EPS
    assert t[-1] <= 1


def test_offsets_are_one_for_each_time():
    """Three gave three times of two. Oracle: the even grid that None takes."""
    key = jax.random.key(0)
    np.testing.assert_array_equal(sample_t(key, 2, offsets=[0.0, 0.5]), sample_t(key, 2))
    for wrong in (np.zeros(3), 0.5, np.array([0.0, 1.0])):
        with pytest.raises(ConfigError, match="offsets must"):
            sample_t(key, 2, offsets=wrong)


@pytest.mark.parametrize("batch", [2.5, 0, -1])
def test_times_are_counted_in_whole_numbers(batch):
    """2.5 gave three times."""
    with pytest.raises(ConfigError, match="batch must be"):
        sample_t(jax.random.key(0), batch)


@pytest.mark.parametrize("antithetic", [True, False])
def test_each_single_time_is_uniform(antithetic):
    """n = 20,000 keys, batch 4, entry 1; Kolmogorov–Smirnov distance below 1.95 / sqrt(n) (p 1e-3)."""
    n = 20_000
    keys = jax.random.split(jax.random.key(1), n)
    t = jax.jit(jax.vmap(lambda key: sample_t(key, 4, antithetic=antithetic)[1]))(keys)
    distance = np.abs(np.sort(np.asarray(t)) - (np.arange(n) + 0.5) / n).max()
    assert distance < 1.95 / np.sqrt(n)


def test_independent_times_are_drawn_each_by_itself():
    """The mean of 1,000 has the standard error 0.009, seed 2; of one time for all it was 0.29."""
    t = np.asarray(sample_t(jax.random.key(2), 1000, antithetic=False))
    assert len(np.unique(t)) > 990
    assert t.mean() == pytest.approx(0.5, abs=0.04)


def test_a_token_is_masked_where_its_number_lies_below_the_move_chance():
    x0 = np.array([[1, 2, 3], [4, 0, 1]], np.int32)
    uniform = np.array([[0.1, 0.5, 0.9], [0.0, 0.2, 0.99]], np.float32)
    x_t = jax.jit(mask_tokens, static_argnums=3)(
        x0, uniform, np.array([0.5, 0.0], np.float32), MASK_ID
    )
    np.testing.assert_array_equal(x_t, [[MASK_ID, 2, 3], [4, 0, 1]])
    assert x_t.dtype == jnp.int32


@pytest.mark.parametrize("x0", [[[0.5, 1.0]], [[0, MASK_ID + 1]], [[-1, 0]]])
def test_what_is_no_token_is_not_masked(x0):
    with pytest.raises(ConfigError, match="x0"):
        q_xt(jax.random.key(0), np.array(x0), np.array([0.5], np.float32), MASK_ID)


@pytest.mark.parametrize("free", [[[True, False]], [[2, 0]], [[0.5, 0.0]]])
def test_what_is_not_free_is_not_masked_whatever_kind_the_marks_are(free):
    """Ones, twos and floats mark a position as True does."""
    x0, always = np.array([[1, 2]]), np.ones(1, np.float32)
    x_t = q_xt(jax.random.key(0), x0, always, MASK_ID, np.array(free))
    np.testing.assert_array_equal(x_t, [[MASK_ID, 2]])
    with pytest.raises(ConfigError, match=r"free must be \[1, 2\] like x0, not \[1, 1, 2\]"):
        q_xt(jax.random.key(0), x0, always, MASK_ID, np.array([free]))


def test_share_of_masked_tokens_is_the_move_chance():
    """n = 100,000 per row, standard error at most 1.6e-3; bound 4.5 of it; seed 2."""
    chance = np.array([0.02, 0.5, 0.9], np.float32)
    x0 = np.zeros((3, 100_000), np.int32)
    x_t = jax.jit(q_xt, static_argnums=3)(jax.random.key(2), x0, chance, MASK_ID)
    share = (np.asarray(x_t) == MASK_ID).mean(axis=1)
    error = np.sqrt(chance * (1 - chance) / x0.shape[1])
    assert np.all(np.abs(share - chance) < 4.5 * error)


def test_masked_positions_never_predict_mask_and_sum_to_one():
    probs = np.exp(_masked_log_probs(_logits(0, 4), mask_id=MASK_ID))
    assert np.all(probs[:, MASK_ID] == 0)
    assert np.all(probs[:, MASK_ID + 1 :] == 0)
    np.testing.assert_allclose(probs.sum(axis=-1), 1.0, rtol=1e-6)
    plain = np.asarray(_logits(0, 4), np.float64)[:, :MASK_ID]
    expected = np.exp(plain) / np.exp(plain).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(probs[:, :MASK_ID], expected, rtol=2e-6)


def test_narrow_logits_lose_nothing_more():
    """Those of a network of one's own in bfloat16. Oracle: the same logits in float32."""
    narrow = jnp.asarray(_logits(0, 4), jnp.bfloat16)
    expected = _masked_log_probs(narrow.astype(jnp.float32), mask_id=MASK_ID)
    np.testing.assert_array_equal(_masked_log_probs(narrow, mask_id=MASK_ID), expected)
    tokens = np.arange(4)
    nll = token_nll(narrow, tokens, MASK_ID)
    np.testing.assert_allclose(nll, -np.asarray(expected)[tokens, tokens], rtol=1e-6)


def test_subs_carries_unmasked_tokens_over():
    x_t = np.array([[0, MASK_ID, 4]], np.int32)
    log_probs = np.asarray(_subs_log_probs(_logits(1, 1, 3), x_t, mask_id=MASK_ID))
    for position, token in ((0, 0), (2, 4)):
        np.testing.assert_array_equal(np.exp(log_probs[0, position]), np.eye(PADDED)[token])
    masked = np.asarray(_masked_log_probs(_logits(1, 1, 3), mask_id=MASK_ID))
    np.testing.assert_array_equal(log_probs[0, 1], masked[0, 1])
    assert np.isfinite(log_probs).all()


def test_subs_reads_lists_and_refuses_ids_that_do_not_exist():
    """Nothing would be possible where the id is none. Oracle: the same tokens as an array."""
    logits, rows = _logits(1, 1, 3), [[0, MASK_ID, 4]]
    found = subs_log_probs(logits, rows, MASK_ID)
    np.testing.assert_array_equal(found, subs_log_probs(logits, np.array(rows), MASK_ID))
    for wrong in ([[0, 1, MASK_ID + 1]], [[0.0, 1.0, 2.0]]):
        with pytest.raises(ConfigError, match="x_t"):
            subs_log_probs(logits, np.array(wrong), MASK_ID)


def test_gradients_are_finite_where_tokens_are_impossible():
    """The entropy is the worst case: p log p with p = 0."""
    x_t = np.array([[0, MASK_ID, 4]], np.int32)

    def entropy(logits):
        log_probs = subs_log_probs(logits, x_t, MASK_ID)
        return -(jnp.exp(log_probs) * log_probs).sum()

    value, gradient = jax.jit(jax.value_and_grad(entropy))(_logits(2, 1, 3))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.all(np.asarray(gradient)[0, [0, 2]] == 0), (
        "unmasked positions do not depend on logits"
    )
    assert np.abs(np.asarray(gradient)[0, 1, :MASK_ID]).max() > 0.1
