"""The suite "budget": whether the number of calls that a prompt needs can be predicted from it.

The idea is routing by features of the question (EmbedLLM, arXiv 2410.02223), with numbers of calls in place
of models: from the network's first call on a prompt, ridge regression predicts what each number of steps
loses against the largest. A prompt gets the fewest that are expected to write nearly as well.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require
from sdtt_jax.diffusion.decoders.base import entropy, sigma_of_state
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.bootstrap import shares
from sdtt_jax.evaluation.judge import Scores
from sdtt_jax.evaluation.record import Json, Record
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import generation
from sdtt_jax.evaluation.texts import openings
from sdtt_jax.model.batches import map_batches
from sdtt_jax.model.masked import Model
from sdtt_jax.ops.head_loss import selected_losses
from sdtt_jax.ops.sequences import Sequences, arrange

FEATURES = 3  # that `prompt_features` has


def check(subject: Subject) -> None:
    """Raises an error for a subject that the suite cannot measure."""
    settings = subject.settings
    subject.denoiser("budget").require_likelihood()
    if subject.judge is None:
        raise ConfigError("--suite=budget needs a --judge.")
    require(settings.prompted, "--suite=budget continues prompts; give --num_prompts or --prompts.")
    steps = ",".join(map(str, settings.num_steps))
    require(
        len(settings.num_steps) > 1,
        f"--num_steps={steps} is one number of steps; --suite=budget compares two or more, as 4,8,16.",
    )
    found = len(openings(subject))
    require(
        found > 2 * FEATURES,
        f"--suite=budget learns from {FEATURES} features of every other prompt and needs {2 * FEATURES + 1} "
        f"prompts, not {found}; give more with --num_prompts or --prompts.",
    )
    generation.writers(subject, generation.setups(subject)[-1])


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite: continuations of prompts at each of `num_steps`, judged; finished items are kept."""
    settings, model = subject.settings, subject.denoiser("budget")
    setup = next(s for s in generation.setups(subject) if s.name == "prompted")
    every = [w for w in generation.writers(subject, setup) if w.facts["kind"] == "diffusion"]
    every.sort(key=lambda writer: writer.facts["num_steps"])
    inputs: Json = {"texts": [writer.inputs for writer in every], "delta": settings.budget_delta}

    def compute() -> Json:
        judged = [generation.judged_texts(subject, record, setup, writer) for writer in every]
        scores = [texts.scores for texts in judged if texts.scores]
        nats = np.stack([of_prompts(s, settings.continuations) for s in scores], axis=1)
        free = ((0, 0), (0, setup.length - setup.given))
        prompts = generation.after_bos(model, setup.prompts[:: settings.continuations])
        x_init = np.pad(prompts, free, constant_values=model.mask_id)
        features = prompt_features(model, x_init, settings.batch_size)
        counts = np.array([writer.facts["num_steps"] for writer in every])
        return {"kind": "diffusion"} | halves(features, nats, counts, settings.budget_delta)

    result = record.item("budget/prompted", inputs | generation.judging(subject), compute)
    line = f"  {result['steps']:.2f} steps on average lose {result['excess']:.4f} nats per token; the fewest "
    line += f"with one number for all, {result['fixed_steps']}, lose {result['fixed_excess']:.4f}"
    if empty := result.get("prompts_not_scored"):
        line += f"; {empty} prompts with nothing to score"
    record.log(line)


def of_prompts(scores: Scores, continuations: int) -> np.ndarray:
    """Nats per token of the continuations of each prompt together: `[prompts]`; NaN if all are empty."""
    nats, scored = (x.reshape(-1, continuations) for x in (scores.per_token, scores.scored))
    share = shares(scored)  # 1 for continuations of equal length
    return (nats * share).mean(axis=1)


def halves(features: np.ndarray, nats: np.ndarray, steps: np.ndarray, delta: float) -> Json:
    """Fits a budget on every other prompt, and compares it on the rest with one number of steps for all.

    Prompts whose continuations by one of the settings are all empty are left out: to write nothing loses
    nothing, and would be the best that the setting can do.

    Args:
      features: `[prompts, features]`.
      nats: `[prompts, settings]`, per token; NaN where nothing was scored.
      steps: `[settings]`, rising.
      delta: nats per token that may be lost.
    """
    scored = np.isfinite(nats).all(axis=1)
    features, nats = features[scored], nats[scored]
    excess = nats - nats[:, -1:]
    known, new = excess[::2], excess[1::2]
    budget = fit(features[::2], known)
    chosen = fewest(budget, features[1::2], delta)
    fixed = int((known.mean(axis=0) <= delta).argmax())
    return {
        "delta": delta,
        "prompts": len(new),
        "prompts_not_scored": int((~scored).sum()),
        "steps": float(steps[chosen].mean()),
        "excess": float(new[np.arange(len(new)), chosen].mean()),
        "fixed_steps": int(steps[fixed]),
        "fixed_excess": float(new[:, fixed].mean()),
    }


class Budget(NamedTuple):
    """A linear prediction of what each number of steps loses, in nats per token."""

    mean: np.ndarray  # `[features]`
    scale: np.ndarray  # `[features]`
    weights: np.ndarray  # `[features + 1, settings]`, the last row for the constant


def fit(features: np.ndarray, excess: np.ndarray, ridge: float = 1.0) -> Budget:
    """Ridge regression of the excess on standardised features; the constant is not shrunk.

    Args:
      features: `[prompts, features]` float64.
      excess: `[prompts, settings]` float64, nats per token above the last setting; settings in rising order
        of steps.
      ridge: weight of the squared coefficients, in prompts.
    """
    count, known = len(features), features.shape[1]
    require(count > known, f"{count} prompts are too few to fit {known} features; give more.")
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
    x = (features - mean) / scale
    slope = np.linalg.solve(
        x.T @ x + ridge * np.eye(x.shape[1]), x.T @ (excess - excess.mean(axis=0))
    )
    return Budget(mean, scale, np.vstack([slope, excess.mean(axis=0)]))


def fewest(budget: Budget, features: np.ndarray, delta: float) -> np.ndarray:
    """The first setting that is expected to lose at most `delta`, nats per token; the last if none is.

    `[prompts]` int, from features `[prompts, features]`.
    """
    x = (features - budget.mean) / budget.scale
    near = x @ budget.weights[:-1] + budget.weights[-1] <= delta
    near[:, -1] = True
    return np.asarray(near.argmax(axis=1))


def prompt_features(model: Model, x_init: np.ndarray, batch_size: int) -> np.ndarray:
    """Mean, spread and largest of the masked positions' entropies at the first call: `[prompts, 3]`.

    Args:
      model: the denoiser.
      x_init: `[prompts, length]` int32, MASK where text is to be written.
      batch_size: prompts at once.

    Raises:
      ConfigError: the model is a function of its noise; what its first call leaves open is in the noise.
    """
    model.require_likelihood()
    function = functools.partial(_features, model.diffusion, model.sequences)
    return np.asarray(map_batches(function, model.params, x_init, batch_size))


@functools.partial(jax.jit, static_argnames=("diffusion", "sequences"))
def _features(
    diffusion: MaskedDiffusion,
    sequences: Sequences | None,
    params: Any,
    index: jax.Array,
    x: jax.Array,
) -> jax.Array:
    del index
    diffusion = diffusion.within(arrange(x, sequences))
    network, masked = diffusion.denoiser, x == diffusion.mask_id
    sigma = sigma_of_state(diffusion, x)

    def uncertainty(logits: jax.Array, _: jax.Array) -> jax.Array:
        return entropy(jax.nn.log_softmax(logits[:, : network.mask_id]))

    hidden = diffusion.hidden(params, x, sigma)
    found = selected_losses(network, params, uncertainty, hidden, masked, x)
    count = jnp.maximum(masked.sum(axis=-1, dtype=jnp.float32), 1)
    mean = found.sum(axis=-1) / count
    spread = jnp.where(masked, jnp.square(found - mean[:, None]), 0.0).sum(axis=-1) / count
    return jnp.stack([mean, jnp.sqrt(spread), found.max(axis=-1)], axis=-1)
