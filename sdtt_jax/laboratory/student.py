"""A transformer distilled on an enumerated world, for comparison with the exact optimum of each round.

The training code is that for text: masking, teacher trajectories, targets, divergences, optimizer,
rounds. Only the teachers differ: a teacher is a table of predictions at every state, read through the same
two functions `hidden` and `logits`, which makes many trajectories cheap. The first table holds the
true denoiser's predictions, each later one those of the student of the round before (the network
sees no time, so its predictions are a function of the state).

A student starts as its teacher, and a table has no parameters to start from, so a stage before the
rounds copies it: distillation with dt = 1, where the first teacher step reveals everything and
every target is the teacher at x_t itself, without noise.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from sdtt_jax.config import positive, whole
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule
from sdtt_jax.distillation.rounds import DistillConfig, Student, next_round
from sdtt_jax.keys import check_seed, purpose_key
from sdtt_jax.laboratory.world import Array, World, all_states, strides, true_denoiser
from sdtt_jax.networks.config import CoupledConfig, DenoiserConfig, NoiseConfig
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.networks.denoiser import Denoiser
from sdtt_jax.objectives import distill_loss
from sdtt_jax.ops.categorical import NEG_INFINITY
from sdtt_jax.ops.noise import Noise
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import unbox
from sdtt_jax.progress import make_progress
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.loop import TrainLog, train
from sdtt_jax.training.optimizers import OptimizerConfig
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import LossFn, Metrics, TrainStep, make_train_step
from sdtt_jax.typing import Hidden, Key, Logits, Params, PerSequence, Tokens, Tree

# `(key, context, steps) -> batches`: the stacked batches of the steps numbered `steps`, `[n]` int32.
Batches = Callable[[Key, Tree, jax.Array], Tree]
# (title, params, teacher, number, dt) -> the student's parameters and its last logged loss.
Trainer = Callable[[str, Params, Params, int, float], tuple[Params, float]]
# alpha_t = 1 - t up to the schedule's alpha_1 = eps, which is smaller than its default so that it is far
# below what is measured.
SCHEDULE = ScheduleConfig(kind="log-linear", eps=1e-6)
_STATES_PER_CALL, _STEPS_AT_ONCE = 4096, 50


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """The student and its training."""

    # num_layers, embed_dim, num_heads: the transformer's sizes.
    num_layers: int = 2
    embed_dim: int = 64
    num_heads: int = 4
    batch_size: int = 128  # sequences per step
    copy_steps: int = 2500  # steps of the stage that copies the enumerated teacher
    steps_per_round: int = 1000  # steps of each round
    # copy_learning_rate, learning_rate: Adam's peak rates, decayed to zero along a cosine.
    copy_learning_rate: float = 3e-3
    learning_rate: float = 1e-3
    # Teacher trajectories per sequence; their mean is the target's expectation with less noise.
    num_trajectories: int = 16
    seed: int = 0  # of parameters, batches and draws

    def __post_init__(self) -> None:
        whole(1, self, "num_layers", "embed_dim", "num_heads", "batch_size")
        whole(1, self, "copy_steps", "steps_per_round", "num_trajectories")
        positive(self, "copy_learning_rate", "learning_rate")
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class EnumeratedDenoiser:
    """A network or a table of predictions, with the same two functions for both.

    Parameters of the form `{"table": [states, L, V] log-probabilities}` are looked up by the
    state's number; any other parameters are the network's. So the loss that compares a student
    with its teacher also takes a teacher that is not a network. Columns of padding, most of the
    head in a vocabulary this small, are dropped.
    """

    network: Denoiser

    @property
    def mask_id(self) -> int:
        return self.network.mask_id

    @property
    def padded_vocab(self) -> int:
        return self.mask_id + 1

    @property
    def noise_kind(self) -> str | None:
        """The noise that the network sees, if any."""
        return getattr(self.network, "noise_kind", None)

    def hidden(
        self, params: Params, tokens: Tokens, sigma: PerSequence | None = None, *noise: Noise | None
    ) -> Hidden:
        """The network's hidden states, or the table's log-probabilities `[B, L, V]`."""
        if not _is_table(params):
            return self.network.hidden(params, tokens, sigma, *noise)
        stride = strides(self.mask_id, tokens.shape[1])
        return params["table"][(tokens * jnp.asarray(stride, jnp.int32)).sum(axis=-1)]

    def head_params(self, params: Params) -> Params:
        """The whole table, which `logits` recognises by its name, or the network's head."""
        return params if _is_table(params) else self.network.head_params(params)

    def logits(self, params: Params, hidden: Hidden) -> Logits:
        """`[..., V + 1]` float32: the network's head, or the identity and a column for MASK."""
        if not _is_table(params):
            return self.network.logits(params, hidden)[..., : self.padded_vocab]
        widths = [(0, 0)] * (hidden.ndim - 1) + [(0, 1)]
        return jnp.pad(hidden, widths, constant_values=NEG_INFINITY)


def table_params(predictions: Array) -> Params:
    """Parameters of an `EnumeratedDenoiser` that predict `predictions: [states, L, V]`."""
    return {"table": jax.device_put(np.log(np.maximum(predictions, 1e-30)).astype(np.float32))}


def sample_sequences(world: World, seed: int, round: int, step: int, batch_size: int) -> Array:
    """Draws sequences of the chain, `[batch_size, L]` int32; the same arguments give the same sequences."""
    rng = np.random.default_rng((seed, round, step))
    initial = np.cumsum(world.initial)[:-1]
    transition = np.cumsum(world.transition, axis=1)[:, :-1]
    uniform = rng.random((batch_size, world.length))
    tokens = np.empty((batch_size, world.length), np.int32)
    tokens[:, 0] = np.searchsorted(initial, uniform[:, 0], side="right")
    for i in range(1, world.length):
        tokens[:, i] = (uniform[:, i, None] >= transition[tokens[:, i - 1]]).sum(axis=1)
    return tokens


def make_diffusion(world: World, config: Any, noise: NoiseConfig | None = None) -> MaskedDiffusion:
    """A student's transformer, or a table in its place, with alpha_t = 1 - t.

    `config` holds its `num_layers`, `embed_dim` and `num_heads`; `noise` is what it sees, if any.
    """
    layers, width, heads = config.num_layers, config.embed_dim, config.num_heads
    sizes = world.vocab_size, world.length, layers, width, heads
    plain = DenoiserConfig(*sizes, cond_dim=width)
    network = CoupledDenoiser(CoupledConfig.of(plain, noise)) if noise else Denoiser(plain)
    return MaskedDiffusion(EnumeratedDenoiser(network), make_schedule(SCHEDULE))


def network_of(diffusion: MaskedDiffusion) -> Any:
    """A student's network; a table of predictions may take its place in calls."""
    enumerated: Any = diffusion.denoiser
    return enumerated.network


def init_params(diffusion: MaskedDiffusion, key: Key) -> Params:
    """Freshly initialised parameters of a student's network."""
    return jax.jit(lambda key: unbox(network_of(diffusion).init(key)))(key)


def training(num_steps: int, batch_size: int, **optimizer: Any) -> StateSpec:
    """A training on the first device, whose rates fall along a cosine after a short rise."""
    rates = OptimizerConfig(schedule="cosine", warmup_steps=num_steps // 20, b2=0.99, **optimizer)
    settings = TrainConfig(num_steps, batch_size, optimizer=rates, log_every=50)
    return StateSpec(settings, make_mesh(MeshConfig(), jax.devices()[:1]))


def train_in_turns(
    title: str,
    state: TrainState,
    loss: LossFn,
    batches: Batches,
    key: Key,
    settings: TrainConfig,
    length: int,
) -> TrainState:
    """Trains for `settings.num_steps` steps with the usual training loop, several in one compiled program.

    A step takes milliseconds, about as long as handing it to the device takes.
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


def copy_teacher(world: World, config: StudentConfig) -> Params:
    """Distils the true denoiser into the network; returns parameters that predict what it predicts."""
    params = init_params(make_diffusion(world, config), purpose_key(config.seed, "exact-init"))
    train_round = _make_trainer(
        world, config, "kl-fwd", config.copy_learning_rate, config.copy_steps, num_trajectories=1
    )
    teacher = table_params(true_denoiser(world)[0])
    return train_round("copy of the teacher", params, teacher, 0, 1.0)[0]


def train_rounds(
    world: World, config: StudentConfig, params: Params, dts: Sequence[float], divergence: str
) -> Iterator[tuple[Array, float]]:
    """Distills round after round, with step sizes `dts`; `params`, the start, are from `copy_teacher`.

    Yields:
      For each round the student's predictions, [states, L, V] float64, and the last logged loss, in nats per
      masked token.
    """
    num_steps, rate = config.steps_per_round, config.learning_rate
    train_round = _make_trainer(world, config, divergence, rate, num_steps, config.num_trajectories)
    teacher, diffusion = table_params(true_denoiser(world)[0]), make_diffusion(world, config)
    for number, dt in enumerate(dts, start=1):
        params, loss = train_round(f"{divergence}, round {number}", params, teacher, number, dt)
        predicted = predictions(diffusion, params, world)
        yield predicted, loss
        teacher = table_params(predicted)


def predictions(
    diffusion: MaskedDiffusion, params: Params, world: World, noise: Noise | None = None
) -> Array:
    """Predictions at every state: [states, L, V] float64, one-hot where unmasked.

    Args:
      diffusion: from `make_diffusion`.
      params: of the network, or a table.
      noise: that of one text, `[L]` positions, shown at all states to a network that sees noise.
    """
    states = all_states(world.vocab_size, world.length)
    count = min(_STATES_PER_CALL, len(states))
    # the last call wraps around, so that all calls have one shape
    rows = np.arange(-(-len(states) // count) * count) % len(states)
    calls = states[rows].astype(np.int32).reshape(-1, count, world.length)
    logs = np.concatenate([_logits(diffusion, params, tokens, noise) for tokens in calls])
    probabilities = special.softmax(logs[: len(states)].astype(np.float64), axis=-1)
    shown = states[:, :, None] == np.arange(world.vocab_size)
    return np.where(states[:, :, None] == world.vocab_size, probabilities, shown)


@functools.partial(jax.jit, static_argnames="diffusion")
def _logits(
    diffusion: MaskedDiffusion, params: Params, tokens: Tokens, noise: Noise | None
) -> Logits:
    denoiser = diffusion.denoiser
    if noise is not None:
        noise = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(tokens), *x.shape)), noise)
    hidden = diffusion.hidden(params, tokens, None, noise)
    return denoiser.logits(params, hidden)[..., : denoiser.mask_id]


def _make_trainer(
    world: World,
    config: StudentConfig,
    divergence: str,
    rate: float,
    num_steps: int,
    num_trajectories: int,
) -> Trainer:
    """Makes the function that trains a round: one compiled step, with teacher and dt as arguments."""
    distill = DistillConfig(divergence=divergence, num_trajectories=num_trajectories)
    spec = training(num_steps, config.batch_size, name="adam", learning_rate=rate)
    step_fn = make_train_step(distill_loss(make_diffusion(world, config), distill), spec.config)

    def train_round(
        title: str, params: Params, teacher: Params, number: int, dt: float
    ) -> tuple[Params, float]:
        student = next_round(distill, Student(params), number, teacher_params=teacher, dt=dt)
        last = {"loss": 0.0}
        with make_progress(title, num_steps) as bar:
            state = train(
                spec.from_params(**student._asdict()),
                step_fn,
                # every round sees other sequences
                lambda step: sample_sequences(world, config.seed, number, step, config.batch_size),
                purpose_key(config.seed, f"exact-{divergence}", number),
                spec.config,
                log=TrainLog(
                    write=lambda _, values: last.update(values),
                    progress=bar.update,
                    tokens_per_batch=config.batch_size * world.length,
                ),
            )
        return state.params, last["loss"]

    return train_round


def _is_table(params: Params) -> bool:
    return set(params) == {"table"}
