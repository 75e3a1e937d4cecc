"""Models that exist already: a teacher, a judge, and what a teacher starts from."""

import functools
from collections.abc import Callable
from typing import Any

from experiments.stages.context import Run
from sdtt_jax.config import differences, to_mapping
from sdtt_jax.errors import ConfigError
from sdtt_jax.interchange.load import load, load_denoiser, load_network
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.networks.kinds import kind_of
from sdtt_jax.objectives import adaptation_loss, arranged, open_share, teacher_loss
from sdtt_jax.training.step import LossFn


def adopt_teacher(run: Run, checkpoint: str) -> None:
    """Delivers a teacher that exists, if it is one for this run's sizes and tokens."""
    model = load_denoiser(checkpoint, mesh=run.mesh)
    if (kind := kind_of(model.denoiser)) != (wanted := kind_of(run.denoiser)):
        raise ConfigError(
            f"config.teacher.checkpoint={checkpoint} is a {kind} model; the first teacher must be a {wanted}."
        )
    # How it is computed may differ; what it is may not.
    free: dict[str, Any] = {"compute_dtype": "", "remat": "", "unroll": 0}
    if run.base is not None:
        free["length"] = 0  # It has no embeddings of positions, or enough.
    lines = differences(to_mapping(model.config) | free, to_mapping(run.denoiser.config) | free)
    if lines:
        raise ConfigError(
            f"config.teacher.checkpoint={checkpoint} is another network than config.model and config.data "
            "ask for; set these fields alike (the checkpoint's first):\n  " + "\n  ".join(lines)
        )
    if model.text_tokenizer.digest != run.tokenizer.digest:
        raise ConfigError(
            f"config.teacher.checkpoint={checkpoint} was trained on another vocabulary than "
            "config.tokenizer and config.data give; use its tokenizer and corpus."
        )
    run.log(f"  taken from {checkpoint}")
    params = run.shortened(model.params)
    run.deliver(run.workdir.teacher, run.denoiser, params, stage="teacher", source=checkpoint)


def adopt_judge(run: Run, checkpoint: str) -> None:
    """Delivers a judge that exists, if it has the run's tokens."""
    if load_network(checkpoint).text_tokenizer.digest != run.tokenizer.digest:
        raise ConfigError(
            f"config.judge.checkpoint={checkpoint} has another vocabulary than the run; take a causal model "
            "with its tokenizer, or leave it out and one is trained."
        )
    run.log(f"  taken from {checkpoint}")
    params = load(checkpoint, mesh=run.mesh).params
    run.deliver(run.workdir.judge, run.judge, params, stage="judge", source=checkpoint)


def base_objective(run: Run) -> tuple[LossFn, Callable[[int], float] | None]:
    """What a teacher that starts from a published model trains on, and how its attention is opened.

    Returns:
      The loss; of a causal model also the share of the edges to later positions that are open at a step.
    """
    config = run.config.teacher
    if not isinstance(run.base, CausalModel):
        loss_of = functools.partial(teacher_loss, config=config)
        return arranged(loss_of, run.diffusion, run.sequences), None
    share = functools.partial(open_share, annealing=config.attention_annealing)
    loss_of = functools.partial(adaptation_loss, config=config)
    return arranged(loss_of, run.diffusion, run.sequences), share
