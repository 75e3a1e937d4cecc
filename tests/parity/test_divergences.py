"""Divergences, values and gradients, against the reference's.

Oracle: `divergences.npz` of a `reference_*` folder (golden/README.md): float32 within 1e-5, float64
within 1e-12 relative. What the reference calls "tvd" is our "log-l1"; ours of that name is a true total
variation distance, whose oracle is in tests/distillation/test_divergence.py.
"""

import functools

import jax
import numpy as np
import pytest

from sdtt_jax.distillation.divergence import DIVERGENCES
from tests.parity.reference import arrays

OURS = {"kl-bwd": "kl-bwd", "kl-fwd": "kl-fwd", "mse": "mse", "tvd": "log-l1"}
PADDING = 31
NEG_INFINITY = -1e6


def _padded(log_probs, dtype):
    """Adds columns that are no tokens, as in the network's own output."""
    rows = np.asarray(log_probs, dtype)
    return np.pad(rows, ((0, 0), (0, PADDING)), constant_values=NEG_INFINITY)


@functools.cache
def found(folder, bits):
    """Value and gradient of every divergence, in one program."""
    stored, dtype = arrays(folder, "divergences"), f"float{bits}"
    entries = stored["student_log_probs"].shape[-1]

    @jax.jit
    def each(student, teacher):
        def mean(log_probs, name):
            return DIVERGENCES[name](log_probs, teacher, entries).mean()

        return {name: jax.value_and_grad(mean)(student, ours) for name, ours in OURS.items()}

    with jax.enable_x64(bits == 64):
        return each(*(_padded(stored[f"{who}_log_probs"], dtype) for who in ("student", "teacher")))


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-5), (64, 1e-12)])
@pytest.mark.parametrize("name", OURS)
def test_value_and_gradient(reference_golden, close, name, bits, tolerance):
    stored = arrays(reference_golden, "divergences")
    entries = stored["student_log_probs"].shape[-1]
    value, gradient = found(reference_golden, bits)[name]
    assert value.dtype == gradient.dtype == f"float{bits}"
    close(f"divergence {name}: float{bits}", value, stored[f"{name}_{bits}"], tolerance)
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all()
    assert np.all(gradient[:, entries:] == 0), "padding got a gradient"
    expected = stored[f"{name}_{bits}_grad"]
    # Relative to the largest entry: most entries of the KL gradients are tiny.
    close(
        f"divergence {name}: float{bits} gradient",
        gradient[:, :entries],
        expected,
        tolerance,
        scale=np.abs(expected).max(),
    )
