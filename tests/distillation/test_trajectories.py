"""Trajectories as functions of noise. Oracles: the sampler tests' enumerated laws, a trajectory by hand."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from scipy import stats

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.trajectories import (
    Teacher,
    hindsight_noise,
    make_trajectories,
    noise_of,
    noise_shown,
    trajectory_end,
    trajectory_noise,
)
from sdtt_jax.errors import ConfigError
from sdtt_jax.networks.config import CoupledConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.ops.noise import draw_noise, mask_of
from tests.diffusion.test_sampler import exact_first_hitting, exact_texts, text_counts
from tests.statistics import assert_fits
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


def seeing(**noise):
    """A student without its parameters."""
    config = CoupledConfig.of(tiny_network().config, NoiseConfig(hidden_dim=8, **noise))
    return MaskedDiffusion(CoupledDenoiser(config), make_schedule())


TEACHER, TABLE = MaskedDiffusion(TableDenoiser(), make_schedule()), random_table(1)
STUDENT = seeing()
PARAMS = functools.partial(noisy_params, STUDENT.denoiser, 3)
# As many masks as there are tokens.
MANY, MASKED = 4096, seeing(kind="masks", num_values=VOCAB)
# Each is compiled as a whole: running operation by operation takes three times as long.
_end = jax.jit(trajectory_end, static_argnames=("teacher", "config"))
_drawn = jax.jit(draw_noise, static_argnums=(1, 2, 3))
_noise = jax.jit(noise_of, static_argnames=("diffusion", "length"))
_hindsight = jax.jit(hindsight_noise, static_argnames=("teacher", "config"))
_sample = jax.jit(sample, static_argnames=("diffusion", "config"))


@functools.cache
def keys():
    return jax.jit(jax.random.split, static_argnums=1)(jax.random.key(5), 32)


@functools.cache
def many():
    return jax.jit(jax.random.split, static_argnums=1)(jax.random.key(6), MANY)


@jax.jit(static_argnames=("student", "independent"))
def _make(student, keys, texts, independent):
    config = SamplerConfig(LENGTH, mode="first-hitting")
    teacher = Teacher(TEACHER, TABLE)
    return make_trajectories(student, teacher, keys, LENGTH, config, texts, independent=independent)


def _made(student, texts=None, *, independent=False):
    return _make(student, many(), texts, independent)


def _full_noise(seed, count):
    return _drawn(jax.random.key(seed), (count, LENGTH), VOCAB, "full")


@pytest.mark.parametrize(
    ("mode", "num_calls"), [("grid", 1), ("grid", 3), ("first-hitting", 2), ("first-hitting", 3)]
)
def test_over_random_noise_a_trajectory_has_the_law_of_the_teachers_many_steps(mode, num_calls):
    """n = 50,000, standard error of a frequency at most 2.2e-3, seed 4."""
    noise = _full_noise(4, 50_000)
    end = _end(TEACHER, TABLE, noise, SamplerConfig(num_calls, mode=mode))
    table = predictions(TEACHER.denoiser, TABLE)
    if mode == "grid":
        exact = exact_texts(table, SamplerConfig(num_calls))
    else:
        exact = exact_first_hitting(table, num_calls)
    assert_fits(text_counts(end), exact)


def test_a_trajectory_is_the_argmax_with_noise_in_the_order_of_the_noise():
    """Oracle: the same by hand, position after position."""
    noise = _full_noise(4, 50_000)
    end = _end(TEACHER, TABLE, noise, SamplerConfig(LENGTH, mode="first-hitting"))
    noise, table = jax.device_get(noise), np.asarray(TABLE["table"])
    x = np.full((len(end), LENGTH), MASK)
    ranks = np.argsort(np.argsort(-noise.order, axis=-1), axis=-1)
    for rank in range(LENGTH):
        chosen = np.argmax(table[x @ [16, 4, 1]] + noise.token, axis=-1)
        x = np.where(ranks == rank, chosen, x)
    np.testing.assert_array_equal(end, x)


@pytest.mark.parametrize(("mode", "num_calls"), [("grid", 3), ("first-hitting", 2)])
def test_in_hindsight_the_teacher_makes_the_given_texts_of_the_noise(mode, num_calls):
    """Oracles: the trajectories themselves, and the enumerated law of another teacher's texts.

    For texts that the teacher made in this order, the noise has the law of fresh noise. n = 50,000.
    """
    config, other = SamplerConfig(num_calls, mode=mode), random_table(7)
    fresh, again = _full_noise(4, 50_000), _full_noise(6, 50_000)
    texts, again = _end(TEACHER, TABLE, fresh, config), again.replace(order=fresh.order)
    noise = _hindsight(TEACHER, TABLE, again, texts, config)
    np.testing.assert_array_equal(noise.order, again.order)
    assert (np.asarray(_end(TEACHER, TABLE, noise, config)) != np.asarray(texts)).mean() < 1e-4
    exact = exact_texts if mode == "grid" else lambda t, c: exact_first_hitting(t, c.num_steps)
    law = exact(predictions(TEACHER.denoiser, other), SamplerConfig(num_calls))
    assert_fits(text_counts(_end(TEACHER, other, noise, config)), law)


def test_in_hindsight_a_teacher_is_asked_at_the_times_of_its_calls():
    """Oracle: the trajectory of the noise, which is the text. Predictions depend on the time."""
    timed = MaskedDiffusion(TableDenoiser(time_scale=0.3), make_schedule())
    config, fresh = SamplerConfig(LENGTH, mode="first-hitting"), _full_noise(8, 2000)
    texts = np.random.default_rng(8).integers(0, VOCAB, (2000, LENGTH)).astype(np.int32)
    noise = _hindsight(timed, TABLE, fresh, texts, config)
    assert (np.asarray(_end(timed, TABLE, noise, config)) != texts).mean() < 1e-3


def test_the_noise_of_a_position_that_no_call_reveals_stays_fresh():
    """It takes the most probable token, so its noise says nothing of the text. Oracle: the fresh noise."""
    config, fresh = SamplerConfig(2, mode="grid"), _full_noise(4, 2)
    never = np.arange(LENGTH) == 1
    fresh = fresh.replace(order=np.where(never, np.float32(1e-6), fresh.order))
    found = _hindsight(TEACHER, TABLE, fresh, np.zeros((2, LENGTH), np.int32), config)
    changed = np.abs(np.asarray(found.token) - np.asarray(fresh.token)).max((0, 2))
    np.testing.assert_array_equal(changed == 0, never)


def test_the_last_rounds_student_is_a_teacher_without_draws_of_its_own():
    noise, config = _noise(STUDENT, keys(), LENGTH), SamplerConfig(2, mode="first-hitting")
    end = _end(STUDENT, PARAMS(), noise, config)
    greedy = dataclasses.replace(config, temperature=0.0)
    x_init = prior_sample(32, LENGTH, MASK)
    for seed in (0, 1):
        key = jax.random.key(seed)
        state, _ = _sample(STUDENT, PARAMS(), key, x_init, greedy, noise=noise)
        np.testing.assert_array_equal(state.x, end)


def test_a_network_without_noise_features_is_refused():
    with pytest.raises(ConfigError, match="needs a student that sees noise"):
        noise_of(TEACHER, keys(), LENGTH)


@pytest.mark.parametrize(
    "texts",
    [None, np.arange(MANY * LENGTH, dtype=np.int32).reshape(-1, LENGTH) % VOCAB],
)
def test_masks_tell_of_the_noise_that_trajectories_are_drawn_with(texts):
    """Oracle: the full noise, of which the trajectory is a function; in hindsight too."""
    full, found = _made(STUDENT, texts), _made(MASKED, texts)
    masks = jax.jit(mask_of, static_argnums=1)(full.noise, VOCAB)
    np.testing.assert_array_equal(found.tokens, full.tokens)
    np.testing.assert_array_equal(found.noise.token, masks.token)
    np.testing.assert_array_equal(found.noise.order, full.noise.order)
    if texts is None:
        again = jax.jit(
            lambda keys: noise_shown(MASKED, trajectory_noise(MASKED, keys, LENGTH), keys)
        )(many())
        np.testing.assert_array_equal(again.token, found.noise.token)


@pytest.mark.parametrize("student", [STUDENT, MASKED])
def test_independent_noise_has_the_order_of_its_trajectory_and_nothing_else_of_it(student):
    """Oracle: a chi-square test of token and largest number over 4,096 texts; seed 6."""
    made, p_values = (
        jax.device_get({a: _made(student, independent=a) for a in (False, True)}),
        {},
    )
    np.testing.assert_array_equal(made[True].tokens, made[False].tokens)
    np.testing.assert_array_equal(made[True].noise.order, made[False].noise.order)
    for alone, (noise, tokens) in made.items():
        pairs = VOCAB * tokens[:, 0] + np.argmax(noise.token[:, 0], axis=-1)
        counts = np.bincount(pairs, minlength=VOCAB**2).reshape(VOCAB, VOCAB)
        p_values[alone] = stats.chi2_contingency(counts + 1).pvalue
    assert p_values[False] < 1e-9
    assert p_values[True] > 1e-3


def test_real_texts_beside_independent_noise_need_no_teacher():
    """Oracle: the noise and the texts as they were given."""
    texts = np.zeros((MANY, LENGTH), np.int32)
    noise, tokens = _made(STUDENT, texts, independent=True)
    np.testing.assert_array_equal(tokens, texts)
    np.testing.assert_array_equal(noise.order, _made(STUDENT).noise.order)
    config, no_teacher = SamplerConfig(LENGTH, mode="first-hitting"), Teacher(TEACHER, None)
    jax.eval_shape(
        lambda: make_trajectories(
            STUDENT, no_teacher, many(), LENGTH, config, texts, independent=True
        )
    )
