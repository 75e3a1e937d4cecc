"""The losses of the three trainings, as the loop takes them: (params, context, batch, key) -> Loss."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.settings import TeacherConfig
from sdtt_jax.causal.nll import causal_loss
from sdtt_jax.diffusion.forward import DenoiserLike
from sdtt_jax.diffusion.nelbo import denoising_terms
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.distillation.loss import distillation_terms
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.networks.causal import Autoregressive
from sdtt_jax.training.step import Loss, LossFn

Tree = Any


def teacher_loss(denoiser: DenoiserLike, schedule: Schedule, config: TeacherConfig) -> LossFn:
    """The NELBO in nats per token, or the mean over masked tokens; `batch: [batch, length]` int32."""

    def loss(params: Tree, context: Tree, batch: jax.Array, key: jax.Array) -> Loss:
        del context
        terms = denoising_terms(
            denoiser,
            params,
            batch,
            key,
            schedule,
            antithetic=config.antithetic,
            importance=config.importance,
            weighting=config.weighting,
        )
        tokens = jnp.float32(batch.size)
        masked = terms.masked.sum().astype(jnp.float32)
        if config.weighting == "nelbo":
            return Loss(terms.total, tokens, {"masked_share": masked / tokens})
        bound = (terms.nll * terms.weight[:, None]).sum()
        return Loss(terms.total, masked, {"nelbo": bound / tokens})

    return loss


def judge_loss(model: Autoregressive, bos_id: int) -> LossFn:
    """Next-token negative log-likelihood in nats per token."""

    def loss(params: Tree, context: Tree, batch: jax.Array, key: jax.Array) -> Loss:
        del context, key
        total = causal_loss(model, params, batch, bos_id)
        return Loss(total, jnp.float32(batch.size), {})

    return loss


def distill_loss(denoiser: DenoiserLike, schedule: Schedule, config: DistillConfig) -> LossFn:
    """SDTT's divergence per masked token; the context holds `teacher_params` and `dt`."""

    def loss(params: Tree, context: Tree, batch: jax.Array, key: jax.Array) -> Loss:
        total, count = distillation_terms(
            denoiser, params, context["teacher_params"], batch, context["dt"], key, schedule, config
        )
        return Loss(total, count, {})

    return loss
