"""Many small training steps in one compiled program, for which the host waits once.

A step of the laboratory takes milliseconds, about as long as handing it to the device takes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdtt_jax.progress import make_progress
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.loop import TrainLog, train
from sdtt_jax.training.state import TrainState
from sdtt_jax.training.step import LossFn, Metrics, TrainStep, make_train_step
from sdtt_jax.typing import Key, Tree

_STEPS_AT_ONCE = 50

# `(key, context, steps) -> batches`: the stacked batches of the steps numbered `steps`, `[n]` int32.
Batches = Callable[[Key, Tree, jax.Array], Tree]


def train_in_turns(
    title: str,
    state: TrainState,
    loss: LossFn,
    batches: Batches,
    key: Key,
    settings: TrainConfig,
    length: int,
) -> TrainState:
    """Trains for `settings.num_steps` steps with the usual training loop, several steps at a time.

    The state is donated. `batches` makes the batches of all steps of a turn, on the device; the settings are
    those of single steps, and `length` the tokens of a sequence.
    """
    most = min(_STEPS_AT_ONCE, settings.num_steps)
    at_once = next(n for n in range(most, 0, -1) if settings.num_steps % n == 0)
    turns = TrainConfig(settings.num_steps // at_once, settings.batch_size, log_every=1)
    step, tokens = make_train_step(loss, settings), at_once * settings.batch_size * length

    def turn(state: TrainState, _: Tree, key: Key) -> tuple[TrainState, Metrics]:
        key_data, key_steps = jax.random.split(key)
        made = batches(key_data, state.context, state.step + jnp.arange(at_once, dtype=jnp.int32))
        state, metrics = jax.lax.scan(lambda s, b: step.body(s, b, key_steps), state, made)
        return state, jax.tree.map(lambda values: values[-1], metrics)

    with make_progress(title, settings.num_steps) as bar:
        log = TrainLog(
            progress=lambda turn, values: bar.update(turn * at_once, values),
            tokens_per_batch=tokens,
        )
        return train(state, TrainStep(turn), lambda _: {}, key, turns, log=log)
