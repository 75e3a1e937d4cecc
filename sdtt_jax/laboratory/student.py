"""A transformer distilled on an enumerated world, beside the exact optimum of each round.

Everything that trains here is what trains on text: masking, teacher trajectories, targets,
divergences, optimizer, rounds. Only the teachers differ: a teacher is a table of predictions at
every state, behind the same two functions `hidden` and `logits`. The first table holds the true
denoiser's predictions, the next ones what the student of the round before predicts (the network
sees no time, so it is a function of the state), which makes many trajectories cheap.

A student starts as its teacher, and a table has no parameters to start from, so a stage before the
rounds copies it: distillation with dt = 1, where the first teacher step reveals everything and
every target is the teacher at x_t itself, without noise.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from sdtt_jax.config import positive
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import ScheduleConfig, make_schedule
from sdtt_jax.distillation.rounds import DistillConfig, Student, next_round
from sdtt_jax.keys import purpose_key
from sdtt_jax.laboratory import world as exact_world
from sdtt_jax.laboratory.world import Array, World
from sdtt_jax.networks.config import DenoiserConfig
from sdtt_jax.networks.denoiser import Denoiser
from sdtt_jax.objectives import distill_loss
from sdtt_jax.ops.categorical import NEG_INFINITY
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.progress import Progress
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.loop import TrainLog, train
from sdtt_jax.training.optimizers import OptimizerConfig
from sdtt_jax.training.state import StateSpec
from sdtt_jax.training.step import TrainStep, make_train_step

Params = Any
ProgressFactory = Callable[[str, int], Progress]
# alpha_t = 1 - t up to the schedule's alpha_1; smaller than its default so that it is far below
# what is measured.
_SCHEDULE = ScheduleConfig(kind="log-linear", eps=1e-6)
_STATES_PER_CALL = 4096


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """The student and its training.

    Attributes:
      num_layers, embed_dim, num_heads: the transformer's sizes.
      batch_size: sequences per step.
      copy_steps: steps of the stage that copies the enumerated teacher.
      steps_per_round: steps of each round.
      copy_learning_rate, learning_rate: Adam's peak rates, decayed to zero along a cosine.
      num_trajectories: teacher trajectories per sequence; their mean is the target's expectation
        with less noise.
      seed: of parameters, batches and draws.
    """

    num_layers: int = 2
    embed_dim: int = 64
    num_heads: int = 4
    batch_size: int = 128
    copy_steps: int = 2500
    steps_per_round: int = 1000
    copy_learning_rate: float = 3e-3
    learning_rate: float = 1e-3
    num_trajectories: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        fields = (field.name for field in dataclasses.fields(self))
        positive(self, *(name for name in fields if name != "seed"))


class TrainedRound(NamedTuple):
    """What training made of a round."""

    dt: float
    predictions: Array  # [states, L, V] float64, the student's
    loss: float  # of the last logged step, nats per masked token


@dataclasses.dataclass(frozen=True)
class EnumeratedDenoiser:
    """A network and a table of predictions behind the same two functions.

    Parameters of the form `{"table": [states, L, V] log-probabilities}` are looked up by the
    state's number; any other parameters are the network's. So the loss that compares a student
    with its teacher need not know that the teacher is no network. Columns of padding, most of the
    head in a vocabulary this small, are dropped.
    """

    network: Denoiser

    @property
    def mask_id(self) -> int:
        return self.network.mask_id

    @property
    def padded_vocab(self) -> int:
        return self.mask_id + 1

    def hidden(
        self, params: Params, tokens: jax.Array, sigma: jax.Array | None = None
    ) -> jax.Array:
        """The network's hidden states, or the table's log-probabilities `[B, L, V]`."""
        if not _is_table(params):
            return self.network.hidden(params, tokens, sigma)
        stride = exact_world.strides(self.mask_id, tokens.shape[1])
        return params["table"][(tokens * jnp.asarray(stride, jnp.int32)).sum(axis=-1)]

    def head_params(self, params: Params) -> Params:
        """A table whole, which `logits` tells by its name; of the network, its head."""
        return params if _is_table(params) else self.network.head_params(params)

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """`[..., V + 1]` float32: the network's head, or the identity and a column for MASK."""
        if not _is_table(params):
            return self.network.logits(params, hidden)[..., : self.padded_vocab]
        widths = [(0, 0)] * (hidden.ndim - 1) + [(0, 1)]
        return jnp.pad(hidden, widths, constant_values=NEG_INFINITY)


def table_params(predictions: Array) -> Params:
    """Parameters of an `EnumeratedDenoiser` that predict `predictions: [states, L, V]`."""
    return {"table": jnp.asarray(np.log(np.maximum(predictions, 1e-30)), jnp.float32)}


def sample_sequences(world: World, seed: int, round: int, step: int, batch_size: int) -> Array:
    """Sequences of the chain, a pure function of (seed, round, step): [batch_size, L] int32."""
    rng = np.random.default_rng((seed, round, step))
    initial = np.cumsum(world.initial)[:-1]
    transition = np.cumsum(world.transition, axis=1)[:, :-1]
    uniform = rng.random((batch_size, world.length))
    tokens = np.empty((batch_size, world.length), np.int32)
    tokens[:, 0] = np.searchsorted(initial, uniform[:, 0], side="right")
    for i in range(1, world.length):
        tokens[:, i] = (uniform[:, i, None] >= transition[tokens[:, i - 1]]).sum(axis=1)
    return tokens


class Laboratory:
    """A network of one size on one world: copies the true denoiser, then distills round by round.

    Args:
      world: the language.
      config: see `StudentConfig`.
      progress: given a title and a number of steps, makes what shows a stage's progress.
    """

    def __init__(self, world: World, config: StudentConfig, progress: ProgressFactory):
        self.world, self.config, self.progress = world, config, progress
        network = Denoiser(
            DenoiserConfig(
                vocab_size=world.vocab_size,
                length=world.length,
                num_layers=config.num_layers,
                embed_dim=config.embed_dim,
                num_heads=config.num_heads,
                cond_dim=config.embed_dim,
            )
        )
        self.denoiser = EnumeratedDenoiser(network)
        self.diffusion = MaskedDiffusion(self.denoiser, make_schedule(_SCHEDULE))
        self.table = table_params(exact_world.true_denoiser(world)[0])
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def copy_teacher(self) -> Params:
        """Parameters that predict what the true denoiser predicts: distillation with dt = 1."""
        c = self.config
        stage = self._stage("kl-fwd", c.copy_learning_rate, c.copy_steps, 1)
        init = functools.partial(self.denoiser.network.init, purpose_key(c.seed, "exact-init"))
        params = StateSpec(stage.train, self.mesh).init(init).params
        return self._train(stage, params, self.table, 0, 1.0, "copy of the teacher")[0]

    def rounds(
        self, params: Params, dts: tuple[float, ...], divergence: str
    ) -> Iterator[TrainedRound]:
        """Trains round after round.

        Args:
          params: where the first student starts, from `copy_teacher`.
          dts: step size of each round.
          divergence: what the rounds minimise.

        Yields:
          `TrainedRound`, one for each dt.
        """
        c = self.config
        stage = self._stage(divergence, c.learning_rate, c.steps_per_round, c.num_trajectories)
        teacher = self.table
        for number, dt in enumerate(dts, start=1):
            title = f"{divergence}, round {number}"
            params, loss = self._train(stage, params, teacher, number, dt, title)
            predictions = self.predictions(params)
            yield TrainedRound(dt, predictions, loss)
            teacher = table_params(predictions)

    def predictions(self, params: Params) -> Array:
        """What parameters predict at every state: [states, L, V] float64, one-hot where unmasked."""
        size = self.world.vocab_size
        states = exact_world.all_states(size, self.world.length)
        count = min(_STATES_PER_CALL, len(states))
        # the last call wraps around, so that all calls have one shape
        rows = np.arange(-(-len(states) // count) * count) % len(states)
        calls = [
            jnp.asarray(states[rows[i : i + count]], jnp.int32) for i in range(0, len(rows), count)
        ]
        logs = np.concatenate([np.asarray(self._predict(params, tokens)) for tokens in calls])
        probabilities = special.softmax(logs[: len(states)].astype(np.float64), axis=-1)
        shown = states[:, :, None] == np.arange(size)
        return np.where(states[:, :, None] == size, probabilities, shown)

    @functools.cached_property
    def _predict(self) -> Callable[[Params, jax.Array], jax.Array]:
        def predict(params: Params, tokens: jax.Array) -> jax.Array:
            logits = self.denoiser.logits(params, self.denoiser.hidden(params, tokens))
            return logits[..., : self.world.vocab_size]

        return jax.jit(predict)

    def _stage(
        self, divergence: str, rate: float, num_steps: int, num_trajectories: int
    ) -> "_Stage":
        """One compiled step for all rounds: teacher and dt are arguments of it."""
        distill = DistillConfig(divergence=divergence, num_trajectories=num_trajectories)
        optimizer = OptimizerConfig(
            name="adam",
            learning_rate=rate,
            schedule="cosine",
            warmup_steps=num_steps // 20,
            b2=0.99,
        )
        train = TrainConfig(num_steps, self.config.batch_size, optimizer=optimizer, log_every=50)
        step_fn = make_train_step(distill_loss(self.diffusion, distill), train)
        return _Stage(f"exact-{divergence}", distill, train, step_fn)

    def _train(
        self, stage: "_Stage", params: Params, teacher: Params, number: int, dt: float, title: str
    ) -> tuple[Params, float]:
        """A round from `params`: the student's parameters at its end, and the last logged loss."""
        c, last = self.config, dict[str, float]()
        student = next_round(stage.distill, Student(params), number, teacher_params=teacher, dt=dt)
        with self.progress(title, stage.train.num_steps) as bar:
            state = train(
                StateSpec(stage.train, self.mesh).from_params(**student._asdict()),
                stage.step_fn,
                # every round sees other sequences
                lambda step: sample_sequences(self.world, c.seed, number, step, c.batch_size),
                purpose_key(c.seed, stage.purpose, number),
                stage.train,
                log=TrainLog(
                    write=lambda _, values: last.update(values),
                    progress=bar.update,
                    tokens_per_batch=c.batch_size * self.world.length,
                ),
            )
        return state.params, last["loss"]


class _Stage(NamedTuple):
    purpose: str  # names the keys
    distill: DistillConfig
    train: TrainConfig
    step_fn: TrainStep


def _is_table(params: Params) -> bool:
    return set(params) == {"table"}
