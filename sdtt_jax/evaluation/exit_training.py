"""Trains exits: a linear map of each layer's states, learnt on the frozen network in minutes.

Without trained exits, the head reads states that were never trained for it. A trained exit predicts the
last layer's prediction (the tuned lens, arXiv 2303.08112) and how close it comes to that; the network does
not change. Exits are stored with its checkpoint as `exits.npz`; a threshold that was calibrated with them
names their digest.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.config import require
from sdtt_jax.evaluation.record import Arrays, npz, read_npz
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.exiting import EXIT_PARAMS, untrained_exits
from sdtt_jax.objectives import BASE, exits_loss
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

FILE = "exits.npz"
LEARNING_RATE = 3e-3


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
    write_bytes(model.folder / FILE, npz(exits))


def read_exits(model: Model, digest: str, what: str, remedy: str) -> Arrays:
    """The exits in the folder of the model's checkpoint, which must have this digest.

    The error for missing or different exits says `what` asks for them and the remedy.
    """
    path = None if model.folder is None else model.folder / FILE
    exits = (None if path is None else read_npz(path)) or {}
    require(
        bool(exits) and params_digest(exits) == digest,
        f"{what} was calibrated with exits that {path} does not hold, or no longer holds; {remedy}.",
    )
    return exits
