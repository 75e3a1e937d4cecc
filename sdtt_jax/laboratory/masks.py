"""Stochastic masks: what a student makes of noise at masked positions, and of noise that decides nothing.

Multi-mask and infinite-mask diffusion show the network which of several masks, or what continuous noise,
stands at each masked position. Here the student learns the true denoiser's trajectories twice: *coupled*, the
mask tells something of the noise that the tokens are drawn with (which token has the largest Gumbel number);
and *uncoupled*, it is drawn for itself. Given x_t, uncoupled noise is independent of the target, so that the
best prediction does not depend on it, and tokens that are revealed together are as independent as without.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import prior_sample
from sdtt_jax.distillation.coupled import (
    CoupledDistillConfig,
    Trajectories,
    coupled_terms,
    trajectory_end,
)
from sdtt_jax.keys import purpose_key
from sdtt_jax.laboratory.coupled import make_coupled_diffusion, sampled_measures
from sdtt_jax.laboratory.others import Bench, fit, plain_student
from sdtt_jax.laboratory.record import Record
from sdtt_jax.laboratory.student import network_of, table_params
from sdtt_jax.networks.config import NoiseConfig
from sdtt_jax.ops.noise import FULL, MASKS, Noise, draw_noise
from sdtt_jax.training.step import Loss
from sdtt_jax.typing import Key, Params, Tokens, Tree

_DRAWS = 1024


def masks_measures(bench: Bench, kind: str, *, coupled: bool) -> Record:
    """Measures of a student with stochastic masks, counted over samples.

    Args:
      bench: world, sizes and steps.
      kind: "masks", as many as the world has tokens; or "full", continuous noise, infinitely many.
      coupled: whether the teacher's draws depend on what is shown.

    Returns:
      The measures by number of calls, each with `noise_information`.
    """
    world, config = bench.truth.world, bench.config
    noise = NoiseConfig(kind, num_values=world.vocab_size)
    sizes = dataclasses.replace(bench.sizes, noise=noise)
    student, teacher = make_coupled_diffusion(world, sizes), plain_student(bench.truth, sizes)
    distill = CoupledDistillConfig(world.length, full_share=sizes.full_share)

    def loss(params: Tree, context: Tree, batch: Tokens, key: Key) -> Loss:
        key_drawn, key_shown, key_states = jax.random.split(key, 3)
        drawn = draw_noise(key_drawn, batch.shape, world.vocab_size, FULL)
        fixed = context["teacher_params"]
        tokens = trajectory_end(teacher, fixed, drawn, distill.trajectory(1))
        shown = told(drawn, kind)
        if not coupled:
            shown = draw_noise(key_shown, batch.shape, world.vocab_size, noise.levels)
        trajectories = Trajectories(shown, tokens)
        terms = coupled_terms(student, params, trajectories, key_states, distill)
        return Loss(*terms, {})

    title = f"{kind}, {'coupled' if coupled else 'uncoupled'}"
    begin = network_of(student).init_from(bench.start(), purpose_key(sizes.seed, "exact-masks"))
    context = {"teacher_params": table_params(bench.truth.teacher)}
    params = fit(bench, title, loss, begin, context, config.learning_rate)
    found = sampled_measures(bench.truth, student, params, bench.calls, sizes, temperature=1.0)
    used = noise_information(student, params, world.length, purpose_key(sizes.seed, title))
    return {n: measures | {"noise_information": used} for n, measures in found.items()}


def told(noise: Noise, kind: str) -> Noise:
    """What masks tell of Gumbel noise: all, or of each position the token with the largest number."""
    if kind != MASKS:
        return noise
    largest = jnp.argmax(noise.token, axis=-1)
    return Noise(noise.order, jax.nn.one_hot(largest, noise.token.shape[-1], dtype=jnp.float32))


def noise_information(diffusion: MaskedDiffusion, params: Params, length: int, key: Key) -> float:
    """Mean KL of the first call's predictions from their mean over noise, nats per token.

    Args:
      diffusion, params: a student that sees noise.
      length: tokens of a text.
      key: PRNG key of the draws.
    """
    assert diffusion.noise_levels is not None
    x = prior_sample(_DRAWS, length, diffusion.mask_id)
    noise = draw_noise(key, x.shape, diffusion.mask_id, diffusion.noise_levels)
    hidden = diffusion.hidden(params, x, None, noise)
    logits = diffusion.denoiser.logits(params, hidden)[..., : diffusion.mask_id]
    log_probs = jax.nn.log_softmax(logits)
    mean = jax.nn.logsumexp(log_probs, axis=0) - np.log(_DRAWS)
    return float((jnp.exp(log_probs) * (log_probs - mean)).sum(axis=-1).mean())
