"""Noise schedules: `alpha_t` is the probability that a token is still clean at time t.

Time runs from 1 (all masked) to 0. `sigma = -log alpha` is the total noise, `dsigma` its rate in t.
Formulas as in MDLM (arXiv 2406.07524) and SEDD (arXiv 2310.16834).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdtt_jax.config import given, instance, one_of, require, within
from sdtt_jax.diffusion.forward import SAMPLING_EPS
from sdtt_jax.tables import Rows

TimeFunction = Callable[[jax.Array], jax.Array]


# The kinds that read `sigma_min` and `sigma_max`, and the reference's total noise at times 0 and 1.
SIGMAS = {"linear": (0.0, 10.0), "geometric": (1e-3, 1.0)}
# Not far below this, float32 makes alpha_1 0 or less, and sigma(1) infinite or NaN: log-linear's 1 - eps
# rounds to 1 below 3e-8, and cos(pi / 2), to which cosine adds eps, is -4.4e-8.
MIN_EPS = 1e-7
# Total noise other than 0 lies between: beyond, float32 makes its rate, its gradient or the bound's weight
# infinite or NaN at some time from 1e-5 to 1.
MIN_SIGMA, MAX_SIGMA = 1e-30, 1e30
# Of the move chances from 0 to 1, the share at both ends that a bound may leave out; log-linear's is 0.001.
LEFT_OUT = 0.01


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """A noise schedule's kind and parameters.

    Attributes:
      kind: "log-linear" (default), "cosine", "cosine-squared", "linear" or "geometric".
      eps: log-linear, cosine, cosine-squared: `alpha_1`, the share left clean at time 1, at least `MIN_EPS`.
      sigma_min, sigma_max: linear and geometric: total noise at time 0 and 1; None takes it from `SIGMAS`.
        `MIN_SIGMA` to `MAX_SIGMA`; linear's may begin at 0.

    A schedule that masks much at time 1e-5 or leaves much clean at time 1 trains only on the move chances
    between, "geometric" by default on 0.001 to 0.63. Its training loss is then no bound on -log p, as the
    others are missing; evaluations add them (`bound_schedule`).

    A field that the kind does not read keeps its default.
    """

    kind: str = "log-linear"
    eps: float = 1e-3
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        one_of(self, kind=SCHEDULES)
        within(f"[{MIN_EPS}, 1)", self, "eps")
        bounds = given(self, "sigma_min", "sigma_max")
        within("[0, inf)", self, *bounds)
        for name in bounds:
            kinds = " or ".join(map(repr, SIGMAS))
            require(
                self.kind in SIGMAS,
                f"{name}={getattr(self, name)} needs kind={kinds}; {self.kind!r} has none.",
            )
        if self.kind in SIGMAS:
            require(
                self.eps == ScheduleConfig.eps,
                f"eps={self.eps} needs another kind; {self.kind!r} reads sigma_min and sigma_max.",
            )
            low, high = self.sigmas
            open_end = "(" if self.kind == "geometric" else "["
            within(f"{open_end}0, inf)", sigma_min=low)
            within(
                f"[{MIN_SIGMA}, {MAX_SIGMA}]", sigma_max=high, **({"sigma_min": low} if low else {})
            )
            require(
                bool(np.float32(low) < np.float32(high)),
                f"sigma_min={low} must be below sigma_max={high}, in float32 too.",
            )

    @property
    def can_flatten(self) -> bool:
        """Whether the schedule has an `importance_t`."""
        return Schedule(self).importance_t is not None

    @property
    def sigmas(self) -> tuple[float, float]:
        """Total noise at times 0 and 1, for the kinds that read it."""
        low, high = SIGMAS[self.kind]
        return (
            low if self.sigma_min is None else self.sigma_min,
            high if self.sigma_max is None else self.sigma_max,
        )


class Functions(NamedTuple):
    """A schedule's functions of time, each elementwise on float32 arrays of any shape.

    Attributes:
      sigma: total noise.
      dsigma: d sigma / d t.
      importance_t: maps uniform u in [0, 1] to a time t such that the NELBO's weight is flat in u:
        `log(1 - alpha)` is then linear in u. It is the reference's, for training (`NelboConfig.importance`).
        None where the schedule has none.
    """

    sigma: TimeFunction
    dsigma: TimeFunction
    importance_t: TimeFunction | None = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule: functions of time that follow from its config, of numbers or arrays of any shape."""

    config: ScheduleConfig

    def sigma(self, t: ArrayLike) -> jax.Array:
        """Total noise at time t."""
        return self._functions.sigma(jnp.asarray(t))

    def dsigma(self, t: ArrayLike) -> jax.Array:
        """d sigma / d t at time t."""
        return self._functions.dsigma(jnp.asarray(t))

    @property
    def importance_t(self) -> TimeFunction | None:
        """`Functions.importance_t`."""
        return self._functions.importance_t

    def alpha(self, t: ArrayLike) -> jax.Array:
        """Probability that a token is clean at time t."""
        return jnp.exp(-self.sigma(t))

    def move_chance(self, t: ArrayLike) -> jax.Array:
        """Probability that a token is masked at time t, `1 - alpha`, without cancellation."""
        return -jnp.expm1(-self.sigma(t))

    @property
    def _functions(self) -> Functions:
        return _made(SCHEDULES[self.config.kind], self.config)


@functools.lru_cache(maxsize=64)
def _made(make: Callable[[ScheduleConfig], Functions], config: ScheduleConfig) -> Functions:
    # The constants are computed now even under `jit`: a schedule must not hold a trace's values.
    with jax.ensure_compile_time_eval():
        return make(config)


def make_schedule(config: ScheduleConfig | None = None) -> Schedule:
    """The noise schedule that `config` describes; None is log-linear, `alpha_t = 1 - (1 - eps) t`.

    Examples:
      >>> schedule = make_schedule(ScheduleConfig(kind="linear", sigma_min=0.0, sigma_max=2.0))
      >>> float(schedule.sigma(jnp.float32(0.5)))
      1.0
    """
    config = config or ScheduleConfig()
    instance(ScheduleConfig, config=config)
    return Schedule(config)


def values_at(schedule: Schedule, *times: float) -> tuple[list[float], list[float]]:
    """Move chances and total noise at some times, as numbers even under `jit`."""
    with jax.ensure_compile_time_eval():
        # Explicit transfers in both directions: a training step is traced under a guard against others.
        values = _values(schedule, jax.device_put(np.array(times, np.float32)))
        chances, sigmas = jax.device_get(values).tolist()
    return chances, sigmas


@functools.partial(jax.jit, static_argnums=0)
def _values(schedule: Schedule, t: jax.Array) -> jax.Array:
    return jnp.stack([schedule.move_chance(t), schedule.sigma(t)])


def bound_schedule(schedule: Schedule) -> tuple[Schedule, TimeFunction]:
    """The schedule to integrate the bound on -log p over, and a map from its noise to the network's.

    The bound is one integral over all move chances from 0 to 1, whatever the schedule (MDLM, arXiv
    2406.07524, equation 10). A schedule that leaves out more than `LEFT_OUT` of them between `SAMPLING_EPS`,
    its smallest time, and 1 would give less, so it is replaced by log-linear. A time-conditioned network then
    gets the nearest total noise of its own.

    Args:
      schedule: the model's.

    Returns:
      `schedule` itself or log-linear, and a function from its total noise, of any shape, to the total noise
      passed to the network.
    """
    (low, high), (least, most) = values_at(schedule, SAMPLING_EPS, 1.0)
    if low + 1.0 - high <= LEFT_OUT:
        return schedule, lambda sigma: sigma
    return make_schedule(), lambda sigma: jnp.clip(sigma, least, most)


def _log_linear(config: ScheduleConfig) -> Functions:
    keep = 1.0 - config.eps
    sigma_0, sigma_1 = config.eps, -np.log(np.float32(config.eps))

    def importance_t(u: jax.Array) -> jax.Array:
        return -jnp.expm1(-_flat_sigma(u, sigma_0, sigma_1)) / keep

    return Functions(
        sigma=lambda t: -jnp.log1p(-keep * t),
        dsigma=lambda t: keep / (1.0 - keep * t),
        # With eps above 0.567, time would run backwards, and beyond 1.
        importance_t=importance_t if sigma_0 < sigma_1 else None,
    )


def _cosine(config: ScheduleConfig) -> Functions:
    eps, keep, half_pi = config.eps, 1.0 - config.eps, jnp.pi / 2
    return _from_chances(
        alpha=lambda t: eps + keep * jnp.cos(half_pi * t),
        # 1 - cos(x) = 2 sin²(x / 2): the difference itself is 0 in float32 for t below 2e-4.
        move_chance=lambda t: 2 * keep * jnp.square(jnp.sin(half_pi * t / 2)),
        rate=lambda t: half_pi * keep * jnp.sin(half_pi * t),
    )


def _cosine_squared(config: ScheduleConfig) -> Functions:
    eps, keep, half_pi = config.eps, 1.0 - config.eps, jnp.pi / 2
    return _from_chances(
        alpha=lambda t: eps + keep * jnp.square(jnp.cos(half_pi * t)),
        move_chance=lambda t: keep * jnp.square(jnp.sin(half_pi * t)),
        rate=lambda t: half_pi * keep * jnp.sin(jnp.pi * t),
    )


def _from_chances(alpha: TimeFunction, move_chance: TimeFunction, rate: TimeFunction) -> Functions:
    """The functions from `alpha`, `1 - alpha` without cancellation, and the derivative of the latter."""

    def sigma(t: jax.Array) -> jax.Array:
        masked = move_chance(t)
        early = masked < 0.5
        # Each logarithm is used where it is accurate; the other one's argument is kept away from 0.
        small = -jnp.log1p(-jnp.where(early, masked, 0.0))
        return jnp.where(early, small, -jnp.log(jnp.where(early, 1.0, alpha(t))))

    return Functions(sigma, dsigma=lambda t: rate(t) / alpha(t))


def _linear(config: ScheduleConfig) -> Functions:
    low, high = config.sigmas

    def importance_t(u: jax.Array) -> jax.Array:
        return (_flat_sigma(u, low, high) - low) / (high - low)

    return Functions(
        sigma=lambda t: low + t * (high - low),
        dsigma=lambda t: jnp.full_like(t, high - low, dtype=jnp.result_type(t, float)),
        # Where total noise begins at 0, the weight is not integrable.
        importance_t=importance_t if low > 0 else None,
    )


def _geometric(config: ScheduleConfig) -> Functions:
    low, high = config.sigmas
    log_ratio = np.log(np.float32(high)) - np.log(np.float32(low))

    def sigma(t: jax.Array) -> jax.Array:
        return low ** (1 - t) * high**t

    return Functions(sigma, dsigma=lambda t: sigma(t) * log_ratio)


def _flat_sigma(u: jax.Array, sigma_0: float, sigma_1: float | np.floating) -> jax.Array:
    log_masked = u * jax.nn.log1mexp(sigma_1) + (1 - u) * jax.nn.log1mexp(sigma_0)
    return -jax.nn.log1mexp(-log_masked)


SCHEDULES: Rows[Callable[[ScheduleConfig], Functions]] = Rows(
    {
        "log-linear": _log_linear,
        "cosine": _cosine,
        "cosine-squared": _cosine_squared,
        "linear": _linear,
        "geometric": _geometric,
    }
)
