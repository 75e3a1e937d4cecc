"""The single reverse step that a teacher's trajectory is made of, and its end."""

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.decoders.filling import drawn, fill, most_probable, reveal
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.ops.categorical import Filters
from sdtt_jax.typing import Hidden, Key, Params, Tokens

# k steps of 1 / k from time 1 end at 0, in float32 up to this far above it.
ROUNDING = 2e-7


def unmask_prob(schedule: Schedule, t: jax.Array, s: jax.Array) -> jax.Array:
    """`(alpha_s - alpha_t) / (1 - alpha_t)`: chance that a masked token is revealed from t to s < t.

    1 where `s` is 0 or less: everything is revealed there, also what a schedule with noise at time 0 masks.
    """
    masked_t = schedule.move_chance(t)
    masked_s = schedule.move_chance(jnp.maximum(s, 0.0))
    revealed = jnp.clip((masked_t - masked_s) / jnp.maximum(masked_t, 1e-30), 0.0, 1.0)
    return jnp.where(s <= ROUNDING, 1.0, revealed)


def reverse_step(
    diffusion: MaskedDiffusion,
    params: Params,
    key: Key,
    x_t: Tokens,
    hidden: Hidden,
    prob: jax.Array,
) -> Tokens:
    """One reverse step, given the hidden states at `x_t`: `x_s: [batch, length]` int32.

    Args:
      diffusion, params: the model.
      key: PRNG key of this step.
      x_t: `[batch, length]` int32.
      hidden: `[batch, length, embed]`, the network's hidden states at `x_t`.
      prob: `[batch]` or `[]` float32, chance of being revealed, from `unmask_prob`.
    """
    key_position, key_token = jax.random.split(key)
    uniform = jax.random.uniform(key_position, x_t.shape, jnp.float32)
    revealed = (x_t == diffusion.mask_id) & (uniform < jnp.asarray(prob)[..., None])
    return fill(diffusion, params, x_t, hidden, revealed, drawn(Filters()), key_token)


def final_denoise(
    diffusion: MaskedDiffusion, params: Params, x_t: Tokens, t: jax.Array
) -> tuple[Tokens, jax.Array]:
    """`x_t` with the most probable tokens where it is masked, and how many network calls that took: 1 or 0.

    Args:
      diffusion, params: the model.
      x_t: `[batch, length]` int32.
      t: `[]` float32, the time of the state, for a time-conditioned network.
    """
    sigma = jnp.broadcast_to(diffusion.schedule.sigma(t), x_t.shape[:1])
    return reveal(diffusion, params, x_t, x_t == diffusion.mask_id, sigma, most_probable)
