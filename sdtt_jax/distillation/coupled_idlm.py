"""Inverse distillation of a noise-coupled student, which needs no real texts.

A student trained in hindsight (`coupled`) can only average over what its noise does not tell about a text, so
its few calls stay worse than its teacher's many. Inverse distillation (`idlm`) asks for no particular text,
only for texts that the teacher would have written. By itself it cannot make tokens that are revealed together
agree, because they are drawn independently; with a student that sees their noise it can.

The only input is noise. From it the student writes a text in one call. It then learns at a state that shows
part of this text, in the order that the noise gives, together with the noise of the rest. A generation of two
calls reaches its second call in exactly this way, and a longer one nearly so.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sdtt_jax.config import within
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.reverse import reverse_step
from sdtt_jax.diffusion.sampler import prior_sample
from sdtt_jax.distillation.coupled import CoupledDistillConfig, states_along
from sdtt_jax.distillation.idlm import STUDENT, InverseConfig, inverse_terms
from sdtt_jax.distillation.trajectories import Trajectories, noise_of
from sdtt_jax.ops.tokens import check_rows
from sdtt_jax.typing import Key, Params, Scalar, Tree


@dataclasses.dataclass(frozen=True)
class CoupledIdlmConfig(InverseConfig):
    """The states at which the student learns."""

    # Share of the states that are fully masked in any case, as a generation begins; the others show 0 to
    # length - 1 tokens of a text, each number equally often.
    full_share: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        within("[0, 1]", self, "full_share")


def coupled_idlm_terms(
    student: MaskedDiffusion,
    diffusion: MaskedDiffusion,
    params: Tree,
    teacher_params: Params,
    shape: tuple[int, ...],
    key: Key,
    config: CoupledIdlmConfig,
) -> tuple[Scalar, Scalar]:
    """The student's loss and the fake's, in nats.

    Args:
      student: the student, without its parameters; it sees noise.
      diffusion: teacher and fake, without their parameters; they see no noise.
      params: `{"student": …, "fake": …}`; neither loss has a gradient for the other, as in `idlm`.
      teacher_params: no gradient flows into them.
      shape: `(batch, length)` of the texts that the student writes.
      key: PRNG key.
      config: the states at which the student learns.

    Returns:
      `(student, fake)`: `[]` float32 each, sums over the batch.

    Raises:
      ConfigError: `shape` is not that of a batch, or the student sees no noise.
    """
    check_rows(shape, "the batch")
    batch, length = shape
    key_noise, key_text, key_state, *keys = jax.random.split(key, 6)
    noise = noise_of(student, jax.random.split(key_noise, batch), length)
    still = jax.lax.stop_gradient(params[STUDENT])
    begin, ones = prior_sample(batch, length, student.mask_id), jnp.ones(batch, jnp.float32)
    hidden = student.hidden(still, begin, student.schedule.sigma(ones), noise)
    texts = reverse_step(student, still, key_text, begin, hidden, ones)
    along = CoupledDistillConfig(full_share=config.full_share)
    states = states_along(student, Trajectories(noise, texts), key_state, along, 1)
    hidden = student.hidden(params[STUDENT], states.x_t, states.sigma, noise)
    return inverse_terms(
        student, diffusion, params, teacher_params, states.x_t, hidden, keys, config
    )
