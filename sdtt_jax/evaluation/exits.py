"""Early exits with a guarantee: a threshold calibrated on held-out text by Learn then Test; trained exits.

The guarantee: with probability `1 - failure` over independent calibration texts, the mean share of masked
positions whose most probable token changes when texts leave early is at most `bound`. The mean is over texts
in which something is masked; prompts and padding never are. Thresholds are tested in falling order, beginning
with one at which no text leaves early, until the first for which "the share exceeds the bound" cannot be
rejected; the one before it is used (arXiv 2110.01052, fixed-sequence testing with the Hoeffding-Bentkus
inequality, proposition 5).

Without trained exits, the head reads states that were never trained for it. A trained exit, a linear map of a
layer's states learnt on the frozen network in minutes, predicts the last layer's prediction (the tuned lens,
arXiv 2303.08112) and how close it comes to that. Exits are stored with the network's checkpoint; a threshold
that was calibrated with them names their digest.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.config import require, within
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import q_xt
from sdtt_jax.evaluation.record import Arrays, npz, read_npz
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.batches import map_batches
from sdtt_jax.model.masked import Model
from sdtt_jax.networks import Denoiser
from sdtt_jax.networks.exiting import EXIT_PARAMS, layer_by_layer, untrained_exits
from sdtt_jax.objectives import BASE, exits_loss
from sdtt_jax.ops.head_loss import selected_losses
from sdtt_jax.ops.sequences import Sequences, arrange
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import MeshConfig, check_batch_size, make_mesh
from sdtt_jax.parallel.placement import place_whole
from sdtt_jax.paths import write_bytes
from sdtt_jax.progress import make_progress
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.loop import Interrupted, TrainLog, train
from sdtt_jax.training.optimizers import OptimizerConfig
from sdtt_jax.training.state import StateSpec
from sdtt_jax.training.step import make_train_step

# Files in a checkpoint's folder: thresholds by bound, and trained exits.
EXITS_FILE, TRAINED_FILE = "exits.json", "exits.npz"
LEARNING_RATE = 3e-3  # of their training
# From never leaving early to nearly always, fixed before any text is seen, as the test requires. There are
# many because too large a step would stop the test; the thresholds after its end cost nothing.
THRESHOLDS = (1.01, *(1 - np.geomspace(1e-4, 1.0, 400)).tolist())


class Calibrated(NamedTuple):
    """A threshold for `networks.exiting.Exiting`, and its effect on the texts it was calibrated on."""

    threshold: float
    # Both are means over the texts in which a token was masked.
    disagreement: float  # share of masked positions whose most probable token changes
    layers: float  # number of layers


def check_exits(model: Model) -> None:
    """Raises `ConfigError` if the network has no exits."""
    require(
        type(model.denoiser) is Denoiser,
        "Early exits are for networks of the kind Denoiser; leave --early_exit and --suite=exits out.",
    )


def hoeffding_bentkus(mean: float, count: int, bound: float) -> float:
    """p-value of "the expectation is above `bound`", for a bound in (0, 1) (arXiv 2110.01052, proposition 5).

    `mean` is that of `count` independent losses in [0, 1].
    """
    # Imported here: at the top, it would cost every program that samples or measures half a second.
    from scipy import special, stats

    low = min(mean, bound)
    relative = float(special.rel_entr(low, bound) + special.rel_entr(1 - low, 1 - bound))
    bentkus = math.e * float(stats.binom.cdf(math.ceil(count * mean - 1e-9), count, bound))
    return min(math.exp(-count * relative), bentkus, 1.0)


def learn_then_test(losses: np.ndarray, bound: float, failure: float) -> int:
    """The last column that the test accepts; the first column needs no test.

    Args:
      losses: `[count, settings]` in [0, 1], of independent texts; settings in the order of the test, the
        first of which has no loss.
      bound: of the expected loss.
      failure: the probability of being wrong.
    """
    within("(0, 1)", bound=bound, failure=failure)
    accepted = 0
    for column in range(1, losses.shape[1]):
        if hoeffding_bentkus(float(losses[:, column].mean()), len(losses), bound) > failure:
            break
        accepted = column
    return accepted


def calibrate(
    model: Model,
    tokens: np.ndarray,
    key: jax.Array,
    *,
    bound: float = 0.05,
    failure: float = 0.05,
    least: int = 2,
    batch_size: int = 32,
) -> Calibrated:
    """The lowest threshold with the guarantee, on texts each masked at a random time.

    Args:
      model: with a `Denoiser`.
      tokens: `[texts, length]` int32, held-out and independent, packed like the model's sequences.
      key: PRNG key.
      bound, failure: of the guarantee.
      least: layers that every text goes through.
      batch_size: texts at once.

    Raises:
      ConfigError: the network has no exits, or no token of any text was masked.
    """
    check_exits(model)
    function = functools.partial(_profile, model.diffusion, model.sequences, key)
    profile = map_batches(function, model.params, tokens, batch_size)
    # A text without a masked token makes no call and would count as one that leaves early without a loss.
    settled, differs = (x[profile[2] > 0] for x in profile[:2])
    require(
        len(settled) > 0,
        f"none of {len(tokens)} texts had a token masked, so they say nothing about exits; take more texts.",
    )
    layers = settled.shape[1]
    # For each threshold, the first layer from `least` on whose score reaches it, or else the last layer.
    may = settled[:, None, :] >= np.array(THRESHOLDS)[:, None]
    may &= np.arange(layers) >= least - 1
    may[..., -1] = True
    leaves = may.argmax(axis=-1)
    losses = np.take_along_axis(differs, leaves, axis=1)
    chosen = learn_then_test(losses, bound, failure)
    means = losses[:, chosen].mean(), leaves[:, chosen].mean() + 1
    return Calibrated(THRESHOLDS[chosen], *(float(mean) for mean in means))


@functools.partial(jax.jit, static_argnames=("diffusion", "sequences"))
def _profile(
    diffusion: MaskedDiffusion,
    sequences: Sequences | None,
    key: jax.Array,
    params: Any,
    index: jax.Array,
    x0: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores of each layer's exit, the share of its tokens that differ, and the number of masked tokens.

    The most probable tokens at masked positions are compared with those of the last layer.
    `[texts, layers]` float32 twice, and `[texts]` int32.
    """
    key_t, key_mask = jax.random.split(jax.random.fold_in(key, index))
    t = jax.random.uniform(key_t, x0.shape[:1], jnp.float32)
    schedule, network = diffusion.schedule, diffusion.denoiser
    # As a sampler sees them: texts, prompts and padding as in training.
    arrangement = arrange(x0, sequences)
    free, segments = (
        (None, None) if arrangement is None else (arrangement.free, arrangement.segments)
    )
    x_t = q_xt(key_mask, x0, schedule.move_chance(t), diffusion.mask_id, free)
    masked = x_t == diffusion.mask_id
    assert isinstance(network, Denoiser)
    states, settled = layer_by_layer(network, params, x_t, schedule.sigma(t), segments)

    def best(logits: jax.Array, _: jax.Array) -> jax.Array:
        return jnp.argmax(logits[:, : network.mask_id], axis=-1)

    def likeliest(hidden: jax.Array) -> jax.Array:
        return selected_losses(network, params, best, hidden, masked, x0)

    tokens = jax.lax.map(likeliest, states)
    differs = (masked & (tokens != tokens[-1])).sum(axis=-1, dtype=jnp.float32)
    count = masked.sum(axis=-1, dtype=jnp.int32)
    return settled.T, (differs / jnp.maximum(count, 1)).T, count


def train_exits(
    model: Model, tokens: np.ndarray, seed: int, *, num_steps: int, batch_size: int
) -> Arrays:
    """Trains the exits of a network; returns arrays like those of `networks.exiting.untrained_exits`.

    Args:
      model: with a `Denoiser`.
      tokens: `[texts, length]` int32, packed like the model's sequences; read in one random order, over and
        over.
      seed: of that order and of the maskings.
      num_steps: of the training.
      batch_size: texts of a step.

    Raises:
      ConfigError: the mesh does not divide `batch_size`; larger batches would train other exits.
    """
    mesh = model.mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    check_batch_size(batch_size, mesh)
    rates = OptimizerConfig(
        "adam", LEARNING_RATE, schedule="cosine", warmup_steps=num_steps // 20, b2=0.99
    )
    config = TrainConfig(num_steps, batch_size, optimizer=rates)
    fresh = functools.partial(untrained_exits, model.config)
    # The state is donated together with its context, so the model keeps its own parameters.
    base = model.params if model.mesh else place_whole(model.params, mesh)
    base = jax.jit(functools.partial(jax.tree.map, jnp.copy))(base)
    state = StateSpec(config, mesh).init(fresh).replace(context={BASE: base})
    order, rows = np.random.default_rng(seed).permutation(len(tokens)), np.arange(batch_size)
    with make_progress("exits", num_steps, shown=processes.is_first()) as bar:
        try:
            state = train(
                state,
                make_train_step(exits_loss(model.diffusion, model.sequences), config),
                lambda step: tokens[order[(step * batch_size + rows) % len(tokens)]],
                purpose_key(seed, "evaluate.exits.training"),
                config,
                log=TrainLog(progress=bar.update, tokens_per_batch=batch_size * tokens.shape[1]),
            )
        except Interrupted as stop:  # the training is too short to keep a part of it
            raise KeyboardInterrupt from stop
    return {name: processes.to_host(value) for name, value in state.params.items()}


def with_exits(model: Model, exits: Arrays) -> Model:
    """The model with trained exits among its parameters."""
    placed = exits if model.mesh is None else place_whole(exits, model.mesh)
    facts = model.facts | {"checkpoint_digest": model.params_digest}
    return dataclasses.replace(model, params=model.params | {EXIT_PARAMS: placed}, facts=facts)


def store_exits(model: Model, exits: Arrays) -> None:
    """Writes the exits into the folder of the model's checkpoint."""
    assert model.folder is not None
    write_bytes(model.folder / TRAINED_FILE, npz(exits))


def read_exits(model: Model, digest: str, what: str, remedy: str) -> Arrays:
    """The exits in the folder of the model's checkpoint, which must have this digest.

    The error for missing or different exits says `what` asks for them and the remedy.
    """
    path = None if model.folder is None else model.folder / TRAINED_FILE
    exits = (None if path is None else read_npz(path)) or {}
    require(
        bool(exits) and params_digest(exits) == digest,
        f"{what} was calibrated with exits that {path} does not hold, or no longer holds; {remedy}.",
    )
    return exits
