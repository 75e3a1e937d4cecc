"""Masking, NELBO and one reverse step against the reference's values.

Oracle: `forward.npz`, `mdlm_nelbo.npz` and `reverse_step.npz` of a `reference_*` folder
(golden/README.md), float32, within 1e-5 relative.
"""

import functools

import jax
import numpy as np
import pytest

from sdtt_jax.diffusion.forward import mask_tokens, masked_log_probs
from sdtt_jax.diffusion.nelbo import masked_nll, nelbo_weight
from sdtt_jax.diffusion.reverse import unmask_prob
from tests.parity.reference import SCHEDULE, arrays, network


@pytest.fixture(scope="module")
def forward(reference_golden):
    return arrays(reference_golden, "forward")


@pytest.fixture(scope="module")
def noise(forward):
    """What the schedule says of the stored times, in one program."""
    functions = {name: getattr(SCHEDULE, name) for name in ("sigma", "move_chance", "dsigma")}
    functions["weight"] = functools.partial(nelbo_weight, SCHEDULE)
    call = jax.jit(lambda t: {name: function(t) for name, function in functions.items()})
    return jax.tree.map(np.asarray, call(forward["t"]))


def test_noise_at_the_stored_times(forward, noise, close):
    for name in ("sigma", "move_chance", "dsigma"):
        close(f"forward: {name}", noise[name], forward[name])


def test_masked_tokens(reference_golden, forward, noise):
    """Same uniform numbers, same x_t, token by token."""
    mask_id = network(reference_golden, "teacher_hub").denoiser.mask_id
    uniform, move_chance = forward["mask_uniform"], noise["move_chance"]
    x_t = jax.jit(mask_tokens)(forward["x0"], uniform, move_chance, mask_id)
    np.testing.assert_array_equal(x_t, forward["xt"])


def test_nelbo(reference_golden, forward, noise, close):
    stored = arrays(reference_golden, "mdlm_nelbo")
    teacher = network(reference_golden, "teacher_hub")
    nll = jax.jit(masked_nll, static_argnames="diffusion")(
        teacher.diffusion, teacher.params, forward["x0"], forward["xt"], noise["sigma"]
    )
    per_token = np.asarray(nll) * noise["weight"][:, None]
    close("nelbo: per token", per_token, stored["per_token"])
    close("nelbo: mean", per_token.mean(), stored["mean"])


def test_reverse_step(reference_golden, close):
    """q(x_s | x_t): the reference's two samplers are both our single one, position by position."""
    stored = arrays(reference_golden, "reverse_step")
    student = network(reference_golden, "student_hub")
    denoiser, x_t = student.denoiser, stored["xt"]

    @jax.jit
    def predicted(params, t, dt):
        logits = denoiser.logits(params, denoiser.hidden(params, x_t, SCHEDULE.sigma(t)))
        return unmask_prob(SCHEDULE, t, t - dt), masked_log_probs(logits, denoiser.mask_id)

    found = predicted(student.params, stored["t"], np.float32(stored["dt"]))
    prob, log_probs = map(np.asarray, found)
    masked, one_hot = x_t == denoiser.mask_id, np.eye(denoiser.padded_vocab, dtype=np.float32)
    prob, stay = prob[:, None, None], one_hot[denoiser.mask_id]
    moved = prob * np.exp(log_probs) + (1 - prob) * stay
    ours = np.where(masked[..., None], moved, one_hot[x_t])
    assert np.all(ours[..., denoiser.mask_id + 1 :] == 0), "padding got probability"
    ours = ours[..., student.columns]
    # Typical probabilities are about 1 / vocabulary; the scale makes errors relative down to there.
    scale = 1.0 / denoiser.mask_id
    close("reverse step: analytic", ours, stored["analytic_probs"], scale=scale)
    ancestral = stored["ancestral_probs_on_mask"]
    close("reverse step: ancestral", ours[masked], ancestral, scale=scale)
