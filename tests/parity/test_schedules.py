"""Noise schedules against the reference's.

Oracle: `schedules.npz` of a `reference_*` folder (golden/README.md), float32. The file does not say the
total noise at time 0 and 1 of its linear and geometric schedules; they are read off its own values.
"""

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.schedule import Schedule, ScheduleConfig, make_schedule
from tests.parity.reference import arrays

KINDS = {
    "loglinear": "log-linear",
    "cosine": "cosine",
    "cosinesqr": "cosine-squared",
    "linear": "linear",
    "geometric": "geometric",
}


def _schedule(name: str, values: dict[str, np.ndarray]) -> Schedule:
    kind = KINDS[name.split("_")[0]]
    if kind not in ("linear", "geometric"):
        return make_schedule(ScheduleConfig(kind))
    t, sigma = values["t"].astype(np.float64), values[f"{name}_sigma"].astype(np.float64)
    height = np.log(sigma) if kind == "geometric" else sigma
    slope = (height[-1] - height[0]) / (t[-1] - t[0])
    low, high = height[0] - slope * t[0], height[0] + slope * (1 - t[0])
    if kind == "geometric":
        low, high = np.exp(low), np.exp(high)
    # Four digits are what a person would have written in a config; they also undo the rounding.
    low, high = (float(f"{max(end, 0):.4g}") if end > 1e-6 else 0.0 for end in (low, high))
    return make_schedule(ScheduleConfig(kind, sigma_min=low, sigma_max=high))


@pytest.fixture
def values(reference_golden):
    return arrays(reference_golden, "schedules")


def test_total_noise_and_rate(values, close):
    names = [key.removesuffix("_sigma") for key in values if key.endswith("_sigma")]
    assert len(names) >= len(KINDS)
    t, schedules = values["t"], {name: _schedule(name, values) for name in names}
    # All in one program.
    found = jax.jit(lambda t: {k: (s.sigma(t), s.dsigma(t)) for k, s in schedules.items()})(t)
    for name in names:
        sigma, dsigma = found[name]
        # sigma near time 0 is a difference from 1 in the reference (cosine, cosine-squared), hence
        # the scale 1.
        close(f"schedule {name}: sigma", sigma, values[f"{name}_sigma"])
        expected = np.broadcast_to(values[f"{name}_dsigma"], t.shape)
        close(f"schedule {name}: dsigma", dsigma, expected)


def test_importance_sampled_times(values, close):
    ending = "_importance_t"
    names = [key.removesuffix(ending) for key in values if key.endswith(ending)]
    assert names
    functions = {name: _schedule(name, values).importance_t for name in names}
    assert None not in functions.values()
    found = jax.jit(lambda t: {name: function(t) for name, function in functions.items()})
    for name, times in found(values["t"]).items():
        expected = values[name + ending]
        # The reference overflows at u = 1 where exp(-sigma_1) is below float32's resolution of 1.
        kept = np.isfinite(expected)
        times = np.asarray(times)
        assert np.isfinite(times).all(), name
        close(f"schedule {name}: importance_t", times[kept], expected[kept])
