"""Masking, NELBO and one reverse step against the reference's values.

Oracle: `forward.npz`, `mdlm_nelbo.npz` and `reverse_step.npz` of a `reference_*` folder
(golden/README.md), float32, within 1e-5 relative.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdtt_jax.diffusion.forward import mask_tokens, masked_log_probs
from sdtt_jax.diffusion.nelbo import masked_nll, nelbo_weight
from sdtt_jax.diffusion.reverse import unmask_prob
from tests.parity.reference import SCHEDULE, arrays, network


@pytest.fixture(scope="module")
def forward(reference_golden):
    return arrays(reference_golden, "forward")


def test_noise_at_the_stored_times(forward, close):
    t = jnp.asarray(forward["t"])
    close("forward: sigma", SCHEDULE.sigma(t), forward["sigma"])
    close("forward: move_chance", SCHEDULE.move_chance(t), forward["move_chance"])
    close("forward: dsigma", SCHEDULE.dsigma(t), forward["dsigma"])


def test_masked_tokens(reference_golden, forward):
    """Same uniform numbers, same x_t, token by token."""
    mask_id = network(reference_golden, "teacher_hub").denoiser.mask_id
    move_chance = SCHEDULE.move_chance(jnp.asarray(forward["t"]))
    x_t = mask_tokens(forward["x0"], jnp.asarray(forward["mask_uniform"]), move_chance, mask_id)
    np.testing.assert_array_equal(x_t, forward["xt"])


def test_nelbo(reference_golden, forward, close):
    stored = arrays(reference_golden, "mdlm_nelbo")
    teacher = network(reference_golden, "teacher_hub")
    t = jnp.asarray(forward["t"])
    nll = jax.jit(masked_nll, static_argnames="diffusion")(
        teacher.diffusion, teacher.params, forward["x0"], forward["xt"], SCHEDULE.sigma(t)
    )
    per_token = nll * nelbo_weight(SCHEDULE, t)[:, None]
    close("nelbo: per token", per_token, stored["per_token"])
    close("nelbo: mean", per_token.mean(), stored["mean"])


def test_reverse_step(reference_golden, close):
    """q(x_s | x_t): the reference's two samplers are both our single one, position by position."""
    stored = arrays(reference_golden, "reverse_step")
    student = network(reference_golden, "student_hub")
    denoiser, x_t, t = student.denoiser, stored["xt"], jnp.asarray(stored["t"])
    prob = unmask_prob(SCHEDULE, t, t - float(stored["dt"]))

    @jax.jit
    def tokens(params):
        logits = denoiser.logits(params, denoiser.hidden(params, x_t, SCHEDULE.sigma(t)))
        return jnp.exp(masked_log_probs(logits, denoiser.mask_id))

    masked = x_t == denoiser.mask_id
    stay = jnp.arange(denoiser.padded_vocab) == denoiser.mask_id
    moved = prob[:, None, None] * tokens(student.params)
    moved = moved + (1 - prob)[:, None, None] * stay
    carried = jax.nn.one_hot(x_t, denoiser.padded_vocab)
    ours = np.asarray(jnp.where(masked[..., None], moved, carried))
    assert np.all(ours[..., denoiser.mask_id + 1 :] == 0), "padding got probability"
    ours = ours[..., student.columns]
    # Typical probabilities are about 1 / vocabulary; the scale makes errors relative down to there.
    scale = 1.0 / denoiser.mask_id
    close("reverse step: analytic", ours, stored["analytic_probs"], scale=scale)
    ancestral = stored["ancestral_probs_on_mask"]
    close("reverse step: ancestral", ours[masked], ancestral, scale=scale)
