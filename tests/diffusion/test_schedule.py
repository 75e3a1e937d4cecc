"""Noise schedules. Oracles: autodiff, the defining equations, and flatness of the weight."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.config import from_mapping
from sdtt_jax.diffusion.decoders import DECODERS, parse_mode
from sdtt_jax.diffusion.nelbo import nelbo_weight
from sdtt_jax.diffusion.reverse import unmask_prob
from sdtt_jax.diffusion.schedule import (
    MAX_SIGMA,
    MIN_EPS,
    MIN_SIGMA,
    SCHEDULES,
    SIGMAS,
    Functions,
    ScheduleConfig,
    make_schedule,
    values_at,
)
from sdtt_jax.errors import ConfigError

INSIDE = np.linspace(0.02, 0.98, 97, dtype=np.float32)
CONFIGS = [ScheduleConfig(kind) for kind in SCHEDULES] + [
    ScheduleConfig("linear", sigma_min=1e-4, sigma_max=20.0),
    ScheduleConfig("log-linear", eps=1e-2),
]
IDS = [f"{c.kind}-{c.eps}-{c.sigma_min}" for c in CONFIGS]


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_dsigma_is_the_derivative_of_sigma(config):
    schedule = make_schedule(config)
    slope = jax.jit(jax.vmap(jax.grad(schedule.sigma)))(INSIDE)
    np.testing.assert_allclose(jax.jit(schedule.dsigma)(INSIDE), slope, rtol=1e-4)
    # A time may be a whole number, its rate is none.
    assert jax.eval_shape(schedule.dsigma, 1).dtype == jnp.float32


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_step_that_transfers_nothing_can_make_it(kind):
    """Training traces its step under this guard, which ended a run with the geometric schedule at once."""
    config = ScheduleConfig(kind, sigma_max=7.5) if kind in SIGMAS else ScheduleConfig(kind, 0.0123)

    @jax.jit
    def step(t):
        schedule = make_schedule(config)  # which no other test has made before
        bounds = values_at(schedule, 0.5, 1.0)
        return schedule.sigma(t), schedule.dsigma(t), jnp.asarray(bounds)

    t = jax.device_put(INSIDE)
    with jax.transfer_guard("disallow"):
        step(t)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_it_can_be_pickled(config):
    schedule = make_schedule(config)
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    np.testing.assert_array_equal(again.sigma(INSIDE), schedule.sigma(INSIDE))


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_alpha_falls_from_one(config):
    schedule = make_schedule(config)
    t = np.linspace(0.0, 1.0, 101, dtype=np.float32)
    alpha, move_chance = jax.jit(lambda t: (schedule.alpha(t), schedule.move_chance(t)))(t)
    alpha = np.asarray(alpha)
    # geometric starts at sigma_min = 1e-3 by definition, hence not 1 exactly
    assert alpha[0] == pytest.approx(1.0, abs=2e-3)
    assert np.all(np.diff(alpha) < 0)
    np.testing.assert_allclose(alpha + np.asarray(move_chance), 1.0, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_a_step_that_ends_at_time_zero_reveals_everything(config):
    """Also where a schedule still masks something there, as "geometric" does.

    In float32 the last of 20 steps from time 1 ends at 1.1e-8.
    """
    step = np.float32(1 / 20)
    last = np.float32(1) - np.float32(19) * step
    assert last - step > 0
    begins = np.array([1e-5, 0.01, 1.0, last], np.float32)
    ends = np.array([0.0, -0.3, 0.0, last - step], np.float32)
    chance = functools.partial(unmask_prob, make_schedule(config))
    assert (np.asarray(jax.jit(chance)(begins, ends)) == 1.0).all()


@pytest.mark.parametrize("kind", ["log-linear", "cosine", "cosine-squared"])
@pytest.mark.parametrize("eps", [1e-3, 0.05])
def test_eps_is_what_is_left_at_time_one(kind, eps):
    schedule = make_schedule(ScheduleConfig(kind, eps=eps))
    assert float(jax.jit(schedule.alpha)(np.float32(1.0))) == pytest.approx(eps, rel=1e-3)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_everything_is_finite_at_the_ends_of_what_is_taken(kind):
    """At all times at which a text may be masked, from 1e-5 to 1; with 1e-8 sigma(1) was infinite or NaN."""
    ends: dict = {"sigma_max": MAX_SIGMA} if kind in SIGMAS else {"eps": MIN_EPS}
    if kind == "geometric":
        ends["sigma_min"] = MIN_SIGMA
    schedule = make_schedule(ScheduleConfig(kind, **ends))
    t = np.append(np.geomspace(1e-5, 1, 2001), 1 - np.geomspace(6e-8, 0.1, 501)).astype(np.float32)

    @jax.jit
    def figures(t):
        functions = (schedule.sigma, schedule.dsigma, schedule.alpha, schedule.move_chance)
        slope = jax.vmap(jax.grad(schedule.sigma))
        return [f(t) for f in (*functions, slope, lambda t: nelbo_weight(schedule, t))]

    for values in (*figures(t), schedule.sigma(t), schedule.alpha(t)):
        assert np.isfinite(values).all()
    assert schedule.config.can_flatten == (schedule.importance_t is not None)
    if schedule.importance_t is not None:
        times = np.asarray(schedule.importance_t(jnp.linspace(0.0, 1.0, 101)))
        assert np.all((times > 0) & (times <= 1))


def test_log_linear_alpha_is_linear():
    schedule = make_schedule()
    alpha = jax.jit(schedule.alpha)(INSIDE)
    np.testing.assert_allclose(alpha, 1 - (1 - 1e-3) * INSIDE, rtol=1e-5)


@pytest.mark.parametrize("kind", ["log-linear", "cosine", "cosine-squared"])
def test_the_weight_of_early_times_is_finite_and_right(kind):
    """Oracle: float64. In float32 `-log(cos t)` is 0 below t = 2e-4, and the weight was infinite."""
    schedule, keep = make_schedule(ScheduleConfig(kind)), 1 - 1e-3
    t = np.array([1e-5, 1e-4, 1e-3, 0.3, 0.9])
    half_pi = np.pi / 2
    moved, rate = {
        "log-linear": (keep * t, keep * np.ones_like(t)),
        "cosine": (2 * keep * np.sin(half_pi * t / 2) ** 2, half_pi * keep * np.sin(half_pi * t)),
        "cosine-squared": (keep * np.sin(half_pi * t) ** 2, half_pi * keep * np.sin(np.pi * t)),
    }[kind]
    # dsigma / expm1(sigma), with alpha = 1 - moved.
    weight = jax.jit(lambda t: nelbo_weight(schedule, t))(np.append(t, 1.0).astype(np.float32))
    np.testing.assert_allclose(weight[:-1], rate / moved, rtol=1e-4)
    assert abs(weight[-1]) < 2


def test_move_chance_does_not_cancel_near_time_zero():
    """1 - alpha at t = 1e-5 has a relative error of 6e-3 when it is computed as such in float32."""
    move_chance = make_schedule().move_chance(jnp.float32(1e-5))
    assert float(move_chance) == pytest.approx(0.999e-5, rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig(),
        ScheduleConfig("linear", sigma_min=1e-4, sigma_max=20.0),
        ScheduleConfig("linear", sigma_min=0.5, sigma_max=3.0),
    ],
)
def test_importance_sampling_flattens_the_weight(config):
    """In u the NELBO's weight is weight(t) dt/du = d log(1 - alpha) / du, which should be one constant."""
    schedule = make_schedule(config)

    @jax.jit
    def figures(u):
        dt_du, t = jax.vmap(jax.grad(schedule.importance_t))(u), schedule.importance_t(u)
        # weight(t) = dsigma / expm1(sigma) is the rate of log(1 - alpha) in t.
        ends = schedule.importance_t(jnp.array([0.0, 1.0]))
        spread = jnp.diff(jnp.log(schedule.move_chance(ends)))[0]
        return nelbo_weight(schedule, t) * dt_du, spread

    flat, spread = jax.device_get(figures(np.linspace(0.05, 0.95, 19, dtype=np.float32)))
    np.testing.assert_allclose(flat, flat.mean(), rtol=2e-3)
    assert flat.mean() == pytest.approx(float(spread), rel=2e-3)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind": "loglinear"}, "kind"),
        ({"eps": 0.0}, "eps"),
        ({"eps": 1e-8}, r"eps must lie in \[1e-07, 1\), not 1e-08"),
        ({"eps": 1.0}, "eps"),
        (
            {"sigma_max": 3.0},
            "sigma_max=3.0 needs kind='linear' or 'geometric'; 'log-linear' has none",
        ),
        ({"kind": "cosine", "sigma_min": 0.1}, "sigma_min=0.1 needs kind='linear' or 'geometric'"),
        (
            {"kind": "linear", "eps": 0.1},
            "eps=0.1 needs another kind; 'linear' reads sigma_min and sigma_max",
        ),
        (
            {"kind": "geometric", "eps": 0.1},
            "eps=0.1 needs another kind; 'geometric' reads sigma_min",
        ),
        # The noise would be infinite, and at time 0 it would be 0 times that, which is NaN.
        ({"kind": "linear", "sigma_max": jnp.inf}, r"sigma_max must lie in \[0, inf\), not inf"),
        ({"kind": "geometric", "sigma_max": jnp.inf}, r"sigma_max must lie in"),
        ({"sigma_min": jnp.nan}, r"sigma_min must lie in \[0, inf\), not nan"),
        ({"kind": "linear", "sigma_max": 1e39}, "sigma_max must be 3.4e38 or less, as in float32"),
        ({"kind": "linear", "sigma_max": 1e-40}, r"sigma_max must lie in \[1e-30, 1e\+30\]"),
        ({"kind": "geometric", "sigma_max": 1e37}, r"sigma_max must lie in \[1e-30, 1e\+30\]"),
        ({"kind": "geometric", "sigma_min": 1e-50}, r"sigma_min must lie in \[1e-30, 1e\+30\]"),
        (
            {"kind": "linear", "sigma_min": 1.0, "sigma_max": 1 + 1e-10},
            "sigma_min=1.0 must be below sigma_max=1.0000000001, in float32 too",
        ),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        ScheduleConfig(**fields)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_stored_config_has_the_defaults_of_the_fields_that_its_kind_does_not_read(kind):
    stored = {"kind": kind, "eps": 1e-3, "sigma_min": None, "sigma_max": None}
    assert from_mapping(ScheduleConfig, stored) == ScheduleConfig(kind)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("linear", 2.0, 1.0),
        ("linear", -1.0, None),
        ("linear", 10.0, None),
        ("geometric", 2.0, 1.0),
        ("geometric", 3.0, None),
        ("geometric", 0.0, 1.0),
    ],
)
def test_an_empty_range_of_noise_is_refused_by_the_config(kind, low, high):
    """None takes the reference's value, with which the other end must agree."""
    with pytest.raises(ConfigError, match="sigma_min"):
        ScheduleConfig(kind, sigma_min=low, sigma_max=high)


def test_a_name_alone_is_no_config():
    with pytest.raises(ConfigError, match="of type ScheduleConfig, not 'cosine'; pass Sched"):
        make_schedule("cosine")


def test_a_row_that_is_replaced_is_forgotten(monkeypatch):
    """As by a cell of a notebook that runs again. Oracle: exp(-sigma) of the row in the table."""
    alpha = jax.jit(lambda schedule, t: schedule.alpha(t), static_argnums=0)
    for rate in (1.0, 2.0):
        functions = Functions(functools.partial(jnp.multiply, rate), jnp.full_like)
        monkeypatch.setitem(SCHEDULES, "mine", lambda _, made=functions: made)
        found = alpha(make_schedule(ScheduleConfig("mine")), 1.0)
        np.testing.assert_allclose(found, np.exp(-rate), rtol=1e-6)
        monkeypatch.setitem(DECODERS, "mine", DECODERS["grid"]._replace(timed=rate > 1))
        assert parse_mode("mine").decoder.timed == (rate > 1)
