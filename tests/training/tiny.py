"""The smallest thing that trains, for tests of what surrounds the step."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.loop import TrainLog, train
from sdtt_jax.training.metrics import MetricsWriter
from sdtt_jax.training.optimizers import OptimizerConfig
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import Loss, make_train_step
from sdtt_jax.training.watchdog import watchdog
from tests.training import toy

NUM_STEPS = 12
KEY = 7


def init(key: jax.Array) -> dict:
    return {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.zeros(3)}


def loss_fn(params: dict, context: dict, batch: jax.Array, key: jax.Array) -> Loss:
    x = batch + jax.random.normal(key, batch.shape)
    error = jnp.square(x @ params["kernel"] + params["bias"] - context["target"])
    return Loss(error.sum(), jnp.float32(error.size), {})


def batch_at(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32)


def config() -> TrainConfig:
    return TrainConfig(
        num_steps=NUM_STEPS,
        batch_size=8,
        ema_decay=0.9,
        optimizer=OptimizerConfig(learning_rate=0.1, schedule="linear", warmup_steps=3),
    )


@functools.cache
def step_fn():
    return make_train_step(loss_fn, config())


def _context(ballast: int) -> dict:
    context = {"target": jnp.float32(0.5)}
    return context | {"ballast": jnp.ones((ballast, 1 << 18))} if ballast else context


def fresh(ballast: int = 0) -> TrainState:
    """A state at step 0; `ballast` is megabytes whose only purpose is to take time to write."""
    return _spec().init(functools.partial(init, jax.random.key(0)), _context(ballast))


def abstract(ballast: int = 0) -> TrainState:
    """What `fresh` makes, to restore into."""
    return _spec().abstract(functools.partial(init, jax.random.key(0)), _context(ballast))


def _spec() -> StateSpec:
    return StateSpec(config(), make_mesh(MeshConfig()))


def run(
    directory: Path,
    batches=batch_at,
    num_steps: int = NUM_STEPS,
    *,
    ballast: int = 0,
    watchdog_seconds: float = 0,
    on_rejected=lambda *_: None,
    **fields,
):
    """Trains from the latest checkpoint in `directory`, or from the start."""
    loop_config = toy.until(config(), num_steps, **{"log_every": 1, "save_every": 4} | fields)
    with Checkpoints(directory / "steps", keep=loop_config.keep) as checkpoints:
        restored = checkpoints.restore(abstract(ballast))
        state = fresh(ballast) if restored is None else restored[0]
        with (
            MetricsWriter(directory, {"stage": "tiny", "round": 1}, int(state.step)) as writer,
            watchdog(watchdog_seconds, "a training step (stage tiny, round 1)") as alive,
        ):
            log = TrainLog(write=writer.write, on_rejected=on_rejected, alive=alive)
            key = jax.random.key(KEY)
            return train(
                state, step_fn(), batches, key, loop_config, checkpoints=checkpoints, log=log
            )
