"""Noise-coupled students on an enumerated world, measured by the law of what they write.

The teacher is the true denoiser's table, sampled with a call for each token, so its trajectories are exact
draws of the chain. They cost only a few look-ups, so every batch gets fresh ones.
"""

import dataclasses
import functools

import jax

from sdtt_jax.config import positive, whole, within
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.distillation.coupled import CoupledDistillConfig
from sdtt_jax.distillation.trajectories import Trajectories, trajectory_end
from sdtt_jax.keys import check_seed, purpose_key
from sdtt_jax.laboratory.sampled import Draws
from sdtt_jax.laboratory.student import (
    StudentConfig,
    init_params,
    make_diffusion,
    table_params,
    train_in_turns,
    training,
)
from sdtt_jax.laboratory.world import World, true_denoiser
from sdtt_jax.networks.config import NoiseConfig
from sdtt_jax.objectives import coupled_loss
from sdtt_jax.ops.noise import draw_noise
from sdtt_jax.typing import Key, Params, Tree


@dataclasses.dataclass(frozen=True)
class CoupledStudentConfig:
    """A noise-coupled student and its training."""

    # num_layers, embed_dim, num_heads: the transformer's sizes.
    num_layers: int = 3
    embed_dim: int = 64
    num_heads: int = 4
    noise: NoiseConfig = dataclasses.field(default_factory=NoiseConfig)  # what the student sees
    batch_size: int = 128  # trajectories per step
    num_steps: int = 10_000  # steps of each round
    # learning_rate, adam_learning_rate: peak rates of Muon, for the blocks' matrices, and of Adam, for the
    # rest; decayed to zero along a cosine. After 800 steps the loss was 0.167 nats in the built-in world;
    # with Adam alone, at 1.5e-3, it was 0.206.
    learning_rate: float = 0.01
    adam_learning_rate: float = 3e-3
    full_share: float = 0.4  # as in `CoupledDistillConfig`
    num_samples: int = Draws().number  # sequences that a student's law is counted over
    seed: int = 0  # of parameters, noise and states

    def __post_init__(self) -> None:
        whole(1, self, "num_layers", "embed_dim", "num_heads")
        whole(1, self, "batch_size", "num_steps", "num_samples")
        positive(self, "learning_rate", "adam_learning_rate")
        within("[0, 1]", self, "full_share")
        check_seed(self.seed)

    @property
    def draws(self) -> Draws:
        """The samples that a student's law is counted over."""
        return Draws(self.num_samples, self.seed)


def train_coupled(
    world: World, config: CoupledStudentConfig, distill: CoupledDistillConfig | None = None
) -> list[Params]:
    """Distils the true denoiser's trajectories in rounds; returns the parameters of each round's student.

    Without `distill` there is one round, one-shot, from as many calls as a sequence has tokens.
    """
    if distill is None:
        distill = CoupledDistillConfig(world.length, full_share=config.full_share)
    spec = training(
        config.num_steps,
        config.batch_size,
        name="muon",
        learning_rate=config.learning_rate,
        adam_learning_rate=config.adam_learning_rate,
    )
    student = make_diffusion(world, config, config.noise)
    params = init_params(student, purpose_key(config.seed, "exact-coupled-init"))
    teacher = make_diffusion(world, StudentConfig())
    teacher_params = table_params(true_denoiser(world)[0])
    students, shape = [], (config.batch_size, world.length)
    for round in range(1, distill.num_rounds + 1):
        key = purpose_key(config.seed, "exact-coupled", round)
        state = train_in_turns(
            f"coupled, round {round}",
            spec.from_params(params, {"teacher_params": teacher_params}),
            coupled_loss(student, teacher, distill, round, key, world.length),
            functools.partial(_trajectories, student, teacher, distill.trajectory(round), shape),
            key,
            spec.config,
            world.length,
        )
        params = state.params
        teacher, teacher_params = student, params
        students.append(params)
    return students


def _trajectories(
    student: MaskedDiffusion,
    teacher: MaskedDiffusion,
    sampler: SamplerConfig,
    shape: tuple[int, int],
    key: Key,
    context: Tree,
    steps: jax.Array,
) -> Tree:
    """Fresh trajectories for the steps numbered `steps`; `shape` is (batch size, length)."""
    (batch_size, length), kind = shape, student.noise_kind
    assert kind is not None
    key = jax.random.fold_in(key, steps[0])
    noise = draw_noise(key, (len(steps) * batch_size, length), student.mask_id, kind)
    tokens = trajectory_end(teacher, context["teacher_params"], noise, sampler)
    made = Trajectories(noise, tokens)
    stacked = jax.tree.map(lambda x: x.reshape(len(steps), batch_size, *x.shape[1:]), made)
    return dict(stacked._asdict())
