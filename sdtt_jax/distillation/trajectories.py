"""Trajectories of a teacher as functions of noise: what noise-coupled students learn.

Every position has its noise in advance: a Gumbel number for each token and a uniform number for its place
in the order. A teacher's whole trajectory is then a deterministic function of the noise, and the noise with
which it would have written a given text can be drawn as well.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import masked_log_probs
from sdtt_jax.diffusion.sampler import SamplerConfig, plan_generation, prior_sample, sample
from sdtt_jax.errors import ConfigError
from sdtt_jax.keys import check_batched, seed_key
from sdtt_jax.ops.noise import FULL, Noise, draw_noise, mask_of, noise_given, num_values
from sdtt_jax.ops.rows import MAX_ENTRIES
from sdtt_jax.ops.tokens import as_rows
from sdtt_jax.parallel.mesh import vary_alike
from sdtt_jax.typing import Hidden, Keys, Params, Tokens


def noise_of(diffusion: MaskedDiffusion, keys: Keys, length: int) -> Noise:
    """The noise that a model sees, each sequence's drawn from its own key: `[batch, length]` positions.

    Args:
      diffusion: a model that sees noise.
      keys: `[batch]` PRNG keys.
      length: positions of a sequence.

    Raises:
      ConfigError: the model sees no noise, or the keys cannot be batched (`check_batched`).
    """
    kind = diffusion.noise_kind
    if kind is None:
        raise ConfigError(
            "Noise-coupled distillation needs a student that sees noise, and this network has no noise "
            'features; make it a "coupled" one (CoupledDenoiser).'
        )
    return _drawn(diffusion, keys, length, kind)


def _drawn(diffusion: MaskedDiffusion, keys: Keys, length: int, kind: str) -> Noise:
    check_batched(keys)
    return jax.vmap(lambda key: draw_noise(key, (length,), diffusion.mask_id, kind))(keys)


def trajectory_noise(student: MaskedDiffusion, keys: Keys, length: int) -> Noise:
    """The noise of trajectories. A student sees either all of it or masks that reveal a part."""
    if student.noise_kind is not None and num_values(student.noise_kind):
        return _drawn(student, keys, length, FULL)
    return noise_of(student, keys, length)


def noise_shown(
    student: MaskedDiffusion, noise: Noise, keys: Keys, *, independent: bool = False
) -> Noise:
    """The part of the trajectories' noise that a student sees.

    Args:
      student: a model that sees noise.
      noise: the trajectories' noise, `[batch, length]` positions.
      keys: `[batch]` PRNG keys that the noise was drawn with.
      independent: show separately drawn noise, which shares only the order with `noise`.
    """
    kind, length = student.noise_kind, noise.order.shape[-1]
    if independent:
        own = noise_of(student, jax.vmap(jax.random.fold_in, (0, None))(keys, 1), length)
        return dataclasses.replace(own, order=noise.order)
    assert kind is not None
    return mask_of(noise, num_values(kind)) if num_values(kind) else noise


def trajectory_end(
    teacher: MaskedDiffusion, params: Params, noise: Noise, config: SamplerConfig
) -> Tokens:
    """The texts at which the teacher's trajectories end, starting from all MASK: `[batch, length]` int32.

    They are a function of the noise. Over random noise they are distributed exactly as those of
    `sampler.sample`. A position keeps its token, so the state before call c is the end with MASK at positions
    of call c or later.

    Args:
      teacher, params: the model. A model that sees no noise draws its tokens with the noise; a model that
        sees it, the last round's student, takes the most probable tokens.
      noise: of `[batch, length]` positions.
      config: calls, and how positions are assigned to them.
    """
    batch, length = noise.order.shape
    x_init = prior_sample(batch, length, teacher.mask_id)
    if teacher.noise_kind is not None:
        config = dataclasses.replace(config, temperature=0.0)
    # Nothing is drawn with this key: the noise determines both order and tokens.
    state, _ = sample(teacher, params, seed_key(0), x_init, config, noise=noise)
    return state.x


def hindsight_noise(
    teacher: MaskedDiffusion, params: Params, noise: Noise, tokens: Tokens, config: SamplerConfig
) -> Noise:
    """A draw from the posterior of the noise, given that the teacher wrote these texts with it.

    `trajectory_end` of the result is `tokens`, up to ties in float32. (Positions that no call reveals, with
    `grid` one in 100,000, are not drawn, and keep their fresh noise.) Over texts that the teacher makes in
    this order, the result is distributed like fresh noise. Over real texts, its KL divergence from that
    distribution is the KL divergence of the real texts from the teacher's.

    Args:
      teacher, params: the model; one that sees no noise.
      noise: fresh noise of `[batch, length]` positions, turned into the posterior draw; its order stays.
      tokens: `[batch, length]` int32, the texts.
      config: calls, and how positions are assigned to them.

    Raises:
      ConfigError: `tokens` has another shape, or holds ids that are not tokens.
    """
    denoiser = teacher.denoiser
    tokens = jnp.asarray(as_rows(tokens, teacher.mask_id))
    batch, length = tokens.shape
    x_init, noise = vary_alike(prior_sample(batch, length, teacher.mask_id), noise)
    plan = plan_generation(teacher, seed_key(0), x_init, config, noise)

    def call(index: jax.Array, seen: Hidden) -> Hidden:
        """Keeps the teacher's states at the positions that this call reveals."""
        x = jnp.where(plan.call >= index, teacher.mask_id, tokens)
        hidden = teacher.hidden(params, x, plan.sigmas[index])
        return jnp.where((plan.call == index)[..., None], hidden, seen)

    first = teacher.hidden(params, x_init, plan.sigmas[0])
    seen = jax.lax.fori_loop(1, config.num_steps, call, first)
    head = denoiser.head_params(params)

    def of_text(text: tuple[Hidden, Tokens, Noise]) -> Noise:
        hidden, own, fresh = text
        log_probs = masked_log_probs(denoiser.logits(head, hidden), teacher.mask_id)
        return noise_given(log_probs[:, : teacher.mask_id], own, fresh)

    # With a large vocabulary, a few texts at a time: the logits of a whole batch would be too large.
    at_once = max(1, min(batch, MAX_ENTRIES // (length * denoiser.padded_vocab)))
    found = jax.lax.map(of_text, (seen, tokens, noise), batch_size=at_once)
    drawn = plan.call < config.num_steps

    def where_drawn(given: jax.Array, fresh: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(drawn, range(2, given.ndim)), given, fresh)

    return jax.lax.stop_gradient(jax.tree.map(where_drawn, found, noise))


class Teacher(NamedTuple):
    """The model that made the trajectories: the first teacher, or the last round's student."""

    diffusion: MaskedDiffusion
    params: Params


class Trajectories(NamedTuple):
    """The noise that the student sees, and where the trajectories end."""

    noise: Noise  # of `[batch, length]` positions
    tokens: Tokens  # `[batch, length]` int32


def make_trajectories(
    student: MaskedDiffusion,
    teacher: Teacher,
    keys: Keys,
    length: int,
    config: SamplerConfig,
    texts: Tokens | None = None,
    *,
    independent: bool = False,
) -> Trajectories:
    """The teacher's trajectories from fresh noise; or given texts, with their noise in hindsight.

    Args:
      student: a model that sees noise; it determines which kind of noise is drawn.
      teacher: the model whose trajectories they are.
      keys: `[batch]` PRNG keys, one for the noise of each trajectory.
      length: positions of a sequence.
      config: calls, and how positions are assigned to them.
      texts: `[batch, length]` int32; None: the texts that the teacher makes.
      independent: as in `noise_shown`.
    """
    noise = trajectory_noise(student, keys, length)
    if texts is None:
        texts = trajectory_end(*teacher, noise, config)
    elif not independent:
        noise = hindsight_noise(*teacher, noise, texts, config)
    return Trajectories(noise_shown(student, noise, keys, independent=independent), texts)
