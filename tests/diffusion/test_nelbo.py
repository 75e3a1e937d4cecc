"""The NELBO. Oracle: enumeration of every masking, and quadrature over time, on a world of 3 x 3."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import SAMPLING_EPS, q_xt, sample_t
from sdtt_jax.diffusion.nelbo import NelboConfig, denoising_terms, masked_nll, nelbo, nelbo_weight
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule
from sdtt_jax.errors import ConfigError
from tests.worlds import LENGTH, MASK, TableDenoiser, all_states, predictions, random_table

WORLD, PARAMS = TableDenoiser(), random_table(0)
SCHEDULE = make_schedule()
DIFFUSION = MaskedDiffusion(WORLD, SCHEDULE)
TEXT = (2, 0, 1)
REPEATS, BATCH = 64, 512


X0 = np.tile(np.array(TEXT, np.int32), (64, 1))
_terms = jax.jit(denoising_terms, static_argnames=("diffusion", "config"))


def exact_nelbo(text, low):
    """Nats per token, the integral over t in [low, 1] of the weighted expectation over maskings.

    With alpha = 1 - (1 - eps) t the integrand is a polynomial in t, which 64 Gauss–Legendre nodes
    integrate exactly.
    """
    table = np.log(predictions(WORLD, PARAMS))
    row = {tuple(state): number for number, state in enumerate(all_states().tolist())}
    nodes, weights = np.polynomial.legendre.leggauss(64)
    t = low + (1 - low) * (nodes + 1) / 2
    keep = 1 - 1e-3
    move_chance, weight = keep * t, 1 / t
    total = 0.0
    for pattern in itertools.product((False, True), repeat=LENGTH):
        state = tuple(
            MASK if masked else token for token, masked in zip(text, pattern, strict=True)
        )
        nll = -sum(table[row[state], i, text[i]] for i in range(LENGTH) if pattern[i])
        count = sum(pattern)
        chance = move_chance**count * (1 - move_chance) ** (LENGTH - count)
        total += ((1 - low) / 2 * weights * weight * chance).sum() * nll
    return total / LENGTH


def estimates(**options):
    """`[REPEATS]` means over batches, each with its own key."""
    x0 = np.tile(np.array(TEXT, np.int32), (BATCH, 1))
    keys = jax.random.split(jax.random.key(3), REPEATS)
    config = NelboConfig(**options)
    bound = jax.jit(jax.vmap(lambda key: nelbo(DIFFUSION, PARAMS, x0, key, config).mean()))
    return np.asarray(bound(keys), np.float64)


@pytest.mark.parametrize("antithetic", [False, True])
def test_estimate_is_unbiased(antithetic):
    """n = 64 x 512 draws, seed 3; bound 4 standard errors, which are about 0.008 (uniform) nats."""
    values = estimates(antithetic=antithetic)
    error = values.std(ddof=1) / np.sqrt(REPEATS)
    assert error < 0.03
    assert abs(values.mean() - exact_nelbo(TEXT, SAMPLING_EPS)) < 4 * error


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig("geometric"),
        ScheduleConfig("linear", sigma_min=0.5, sigma_max=3.0),
        ScheduleConfig("linear", sigma_max=1e5),
    ],
    ids=str,
)
def test_the_bound_of_a_uniform_law_is_its_entropy_under_any_schedule(config):
    """Oracle: log 3. Where these schedules' own times were used, it was 0.64, 0.59 and 0.37 of that."""
    uniform, x0 = jax.tree.map(jnp.zeros_like, PARAMS), np.tile(np.array(TEXT, np.int32), (4096, 1))
    model = MaskedDiffusion(WORLD, make_schedule(config))
    found = jax.jit(lambda key: nelbo(model, uniform, x0, key).mean())(jax.random.key(0))
    assert float(found) == pytest.approx(np.log(3), rel=0.08)


def test_importance_sampled_estimate_is_unbiased():
    """n = 64 x 512 draws, seed 3; bound 4 standard errors.

    Its times start at importance_t(0) = 0.001, which leaves out less than 0.2 % of the bound.
    """
    values = estimates(importance=True)
    error = values.std(ddof=1) / np.sqrt(REPEATS)
    low = float(SCHEDULE.importance_t(jnp.float32(0.0)))
    exact = exact_nelbo(TEXT, low)
    assert abs(values.mean() - exact) < 4 * error
    assert exact == pytest.approx(exact_nelbo(TEXT, SAMPLING_EPS), rel=2e-3)


def test_weight_of_the_log_linear_schedule_is_one_over_t():
    t = np.array([1e-5, 0.01, 0.3, 0.99], np.float32)
    weight = jax.jit(lambda t: nelbo_weight(SCHEDULE, t))(t)
    np.testing.assert_allclose(weight, 1 / t, rtol=1e-4)


def test_only_masked_positions_count():
    x0, x_t = np.array([TEXT], np.int32), np.array([[2, MASK, MASK]], np.int32)
    compiled = jax.jit(masked_nll, static_argnames="diffusion")
    nll = np.asarray(compiled(DIFFUSION, PARAMS, x0, x_t, np.zeros(1, np.float32)))[0]
    number = 2 * 16 + MASK * 4 + MASK
    expected = -np.log(predictions(WORLD, PARAMS)[number, [1, 2], [0, 1]])
    assert nll[0] == 0
    np.testing.assert_allclose(nll[1:], expected, rtol=1e-5)


def test_terms_say_what_was_masked():
    terms = jax.device_get(_terms(DIFFUSION, PARAMS, X0, jax.random.key(0)))
    assert (terms.nll[~terms.masked] == 0).all()
    assert (terms.nll[terms.masked] > 0).all()
    assert terms.weight.shape == (64,)


@pytest.mark.parametrize("antithetic", [True, False])
def test_time_and_mask_have_a_key_each_and_the_network_is_asked_at_that_time(antithetic):
    """Oracle: the steps by hand, each of which has its own tests; predictions depend on the time."""
    timed, key = MaskedDiffusion(TableDenoiser(time_scale=0.2), SCHEDULE), jax.random.key(7)

    @jax.jit
    def by_hand():
        key_t, key_mask = jax.random.split(key)
        t = sample_t(key_t, len(X0), antithetic=antithetic)
        x_t = q_xt(key_mask, X0, SCHEDULE.move_chance(t), MASK)
        return x_t == MASK, masked_nll(timed, PARAMS, X0, x_t, SCHEDULE.sigma(t))

    terms = jax.device_get(_terms(timed, PARAMS, X0, key, NelboConfig(antithetic=antithetic)))
    masked, nll = jax.device_get(by_hand())
    np.testing.assert_array_equal(terms.masked, masked)
    np.testing.assert_allclose(terms.nll, nll, rtol=1e-5)


def test_the_weight_of_flat_times_is_the_span_of_log_move_chances():
    """Oracle: total noise from 0.5 to 3."""
    config = ScheduleConfig("linear", sigma_min=0.5, sigma_max=3.0)
    diffusion = MaskedDiffusion(WORLD, make_schedule(config))
    terms = _terms(diffusion, PARAMS, X0, jax.random.key(0), NelboConfig(importance=True))
    span = np.log(np.expm1(-3.0) / np.expm1(-0.5))
    np.testing.assert_allclose(terms.weight, span, rtol=1e-4)


def test_a_network_is_asked_at_no_times_but_its_own():
    """The bound integrates over all move chances; oracle: total noise of "geometric", 0.001 to 1."""
    seen = []

    class Watched(TableDenoiser):
        def hidden(self, params, tokens, sigma=None):
            jax.debug.callback(lambda sigma: seen.append(np.asarray(sigma)), sigma)
            return super().hidden(params, tokens, sigma)

    model = MaskedDiffusion(Watched(), make_schedule(ScheduleConfig("geometric")))
    jax.block_until_ready(jax.jit(lambda key: nelbo(model, PARAMS, X0, key))(jax.random.key(0)))
    jax.effects_barrier()
    [sigma] = seen
    assert 0.99e-3 < sigma.min() < 0.2
    assert sigma.max() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [{"kind": "cosine"}, {"eps": 0.6}], ids=str)
def test_importance_sampling_needs_a_schedule_that_has_it(kind):
    """Log-linear with eps = 0.6 had times up to 1.13, and weights below 0: the loss taught the opposite."""
    x0 = jnp.array([TEXT])
    without = MaskedDiffusion(WORLD, make_schedule(ScheduleConfig(**kind)))
    config = NelboConfig(importance=True)
    with pytest.raises(ConfigError, match="importance"):
        denoising_terms(without, PARAMS, x0, jax.random.key(0), config)


def test_total_is_what_the_weighting_says():
    bound, even = (
        jax.device_get(_terms(DIFFUSION, PARAMS, X0, jax.random.key(0), NelboConfig(weighting)))
        for weighting in ("nelbo", "even")
    )
    np.testing.assert_array_equal(bound.nll, even.nll)
    assert float(bound.total) == pytest.approx(float((bound.nll * bound.weight[:, None]).sum()))
    assert float(even.total) == pytest.approx(float(even.nll.sum()))


def test_unknown_weighting_is_named():
    with pytest.raises(ConfigError, match="weighting='heavy'"):
        NelboConfig(weighting="heavy")


@pytest.mark.parametrize(
    "values",
    [
        lambda p: masked_nll(DIFFUSION, p, jnp.array([TEXT]), jnp.array([TEXT]), jnp.zeros(1)),
        lambda p: nelbo(DIFFUSION, p, jnp.array([TEXT]), jax.random.key(0)),
    ],
    ids=["masked_nll", "nelbo"],
)
def test_values_refuse_to_be_differentiated(values):
    """They would give no gradient, or zero; training goes through `total`."""
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.jit(jax.grad(lambda p: values(p).sum()))(PARAMS)
