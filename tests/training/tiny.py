"""The smallest thing that trains, for tests of what surrounds the step."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.training.loop import train
from sdtt_jax.training.metrics import MetricsWriter
from sdtt_jax.training.optimizers import OptimizerConfig, make_optimizer
from sdtt_jax.training.state import abstract_state, init_state
from sdtt_jax.training.step import Loss, TrainConfig, make_train_step

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
    return make_train_step(loss_fn, make_optimizer(config().optimizer, NUM_STEPS), config())


def make(maker=init_state, ballast: int = 0):
    """A fresh state, or `make(abstract_state)`; with megabytes that only take their time to write."""
    optimizer = make_optimizer(config().optimizer, NUM_STEPS)
    context = {"target": jnp.float32(0.5)}
    if ballast:
        context["ballast"] = jnp.ones((ballast, 1 << 18))
    init_fn = functools.partial(init, jax.random.key(0))
    return maker(init_fn, optimizer, make_mesh(MeshConfig()), context=context, ema=True)


def run(directory: Path, batches=batch_at, num_steps: int = NUM_STEPS, ballast: int = 0, **fields):
    """Trains from the latest checkpoint in `directory`, or from the start."""
    fields = {"log_every": 1, "save_every": 4, "tags": {"stage": "tiny", "round": 1}} | fields
    with Checkpoints(directory / "steps") as checkpoints, MetricsWriter(directory) as writer:
        restored = checkpoints.restore(make(abstract_state, ballast))
        state = make(ballast=ballast) if restored is None else restored[0]
        key = jax.random.key(KEY)
        return train(
            state,
            step_fn(),
            batches,
            num_steps,
            key,
            checkpoints=checkpoints,
            writer=writer,
            **fields,
        )
