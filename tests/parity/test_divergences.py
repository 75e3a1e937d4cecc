"""Divergences, values and gradients, against the reference's.

Oracle: `divergences.npz` of a `reference_*` folder (golden/README.md): float32 within 1e-5, float64
within 1e-12 relative. What the reference calls "tvd" is our "log-l1"; ours of that name is a true total
variation distance, whose oracle is in tests/distillation/test_divergence.py.
"""

import jax
import jax.numpy as jnp
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
    return jnp.asarray(np.pad(rows, ((0, 0), (0, PADDING)), constant_values=NEG_INFINITY))


@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-5), (64, 1e-12)])
@pytest.mark.parametrize("name", OURS)
def test_value_and_gradient(reference_golden, close, name, bits, tolerance):
    stored = arrays(reference_golden, "divergences")
    entries = stored["student_log_probs"].shape[-1]
    with jax.enable_x64(bits == 64):
        dtype = np.dtype(f"float{bits}")
        student = _padded(stored["student_log_probs"], dtype)
        teacher = _padded(stored["teacher_log_probs"], dtype)

        def mean(log_probs):
            return DIVERGENCES[OURS[name]](log_probs, teacher, entries).mean()

        value, gradient = jax.value_and_grad(mean)(student)
        assert value.dtype == gradient.dtype == dtype
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
