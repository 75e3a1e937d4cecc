"""The likelihood of a suffix after a prefix, and its greedy prediction, against the reference's.

Oracle: `suffix_nll.npz` of a `reference_*` folder (golden/README.md), float32, within 1e-5 relative.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.evaluation.likelihood import greedy_infill, suffix_nll
from tests.parity.reference import arrays, network


def test_suffix_likelihood(reference_golden, close):
    stored = arrays(reference_golden, "suffix_nll")
    student = network(reference_golden, "student_hub")
    x_t, t = jnp.asarray(stored["xt"]), jnp.asarray(stored["t"])
    text = np.concatenate([stored["prefix"], stored["suffix"]])
    x0 = jnp.broadcast_to(text, x_t.shape)
    nll = jax.jit(suffix_nll, static_argnames="diffusion")(
        student.diffusion, student.params, x0, x_t, t
    )
    close("suffix: nll per masking", nll, stored["nll_per_masking"])
    close("suffix: nll", nll.mean(), stored["nll"])


def test_greedy_suffix(reference_golden):
    """The suffix masked, its last token kept."""
    stored = arrays(reference_golden, "suffix_nll")
    student = network(reference_golden, "student_hub")
    text = np.concatenate([stored["prefix"], stored["suffix"]])
    start = len(stored["prefix"])
    x_t = text.copy()
    x_t[start:-1] = student.denoiser.mask_id
    infill = jax.jit(greedy_infill, static_argnames="diffusion")
    filled = np.asarray(infill(student.diffusion, student.params, x_t[None], jnp.float32(1)))[0]
    np.testing.assert_array_equal(filled[:start], stored["prefix"])
    np.testing.assert_array_equal(filled[start:], stored["greedy"])
