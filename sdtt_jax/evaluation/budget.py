"""How many calls a prompt needs: the fewest that are expected to write nearly as well as the most.

The idea is routing by features of the question (EmbedLLM, arXiv 2410.02223), with numbers of calls in place
of models: from the network's first call on a prompt, ridge regression predicts what each number of steps
loses against the largest.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require
from sdtt_jax.diffusion.decoders.base import entropy, sigma_of_state
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.model.batches import map_batches
from sdtt_jax.model.masked import Model
from sdtt_jax.ops.head_loss import selected_losses
from sdtt_jax.ops.sequences import Sequences, arrange

FEATURES = 3  # that `prompt_features` has


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

    hidden, head = diffusion.hidden(params, x, sigma), network.head_params(params)
    found = selected_losses(network.logits, uncertainty, head, hidden, masked, x)
    count = jnp.maximum(masked.sum(axis=-1, dtype=jnp.float32), 1)
    mean = found.sum(axis=-1) / count
    spread = jnp.where(masked, jnp.square(found - mean[:, None]), 0.0).sum(axis=-1) / count
    return jnp.stack([mean, jnp.sqrt(spread), found.max(axis=-1)], axis=-1)
