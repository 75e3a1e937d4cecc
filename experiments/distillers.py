"""The distillers that a run may have, and the settings of each.

A further one of one round is a module of `sdtt_jax.distillation`, settings and a row of `DISTILLERS` here, a
field of its name in `RunConfig`, and a row of `PARTS` in `stages/one_round.py`, with its loss.
"""

import dataclasses
from typing import NamedTuple

from sdtt_jax.config import INT32, each, require, whole
from sdtt_jax.distillation.alpha import AlphaConfig
from sdtt_jax.distillation.coupled import CoupledDistillConfig
from sdtt_jax.distillation.coupled_idlm import CoupledIdlmConfig
from sdtt_jax.distillation.idlm import IdlmConfig
from sdtt_jax.distillation.mixture import MixtureConfig
from sdtt_jax.distillation.mmd import MmdConfig
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.networks.config import NoiseConfig
from sdtt_jax.networks.lora import LoraConfig
from sdtt_jax.ops.noise import LATENT, MASKS
from sdtt_jax.ops.sequence_kinds import KINDS
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import OptimizerConfig

SDTT, COUPLED, COUPLED_IDLM = "sdtt", "coupled", "coupled_idlm"


class Distiller(NamedTuple):
    """What other parts of a run must know of a distiller."""

    # The section of the config whose `noise` the student sees; empty: it sees none.
    sees: str = ""
    # The distiller whose last student, of the same network, it continues from; empty: the first teacher.
    after: str = ""
    # Kinds of `data.sequences` that it cannot honour, and why.
    refused: tuple[tuple[str, ...], str] = ((), "")
    # Whether the teacher must be a network of this library, not a published one.
    own_teacher: bool = False


def _seeing(section: str, after: str = "") -> Distiller:
    refused = KINDS[1:], "its student sees a sequence's noise"
    return Distiller(section, after, refused, own_teacher=True)


DISTILLERS = {
    SDTT: Distiller(),
    COUPLED: _seeing(COUPLED),
    "alpha": Distiller(),
    "mixture": _seeing("mixture"),
    "mmd": Distiller(refused=(("documents",), "it compares whole sequences"), own_teacher=True),
    "idlm": Distiller(),
    COUPLED_IDLM: _seeing(COUPLED, after=COUPLED),
}
# Those whose settings have no `num_rounds`, and those whose students see the noise of `coupled`.
ONE_ROUND = tuple(name for name in DISTILLERS if name not in (SDTT, COUPLED))
COUPLED_STUDENTS = tuple(name for name, row in DISTILLERS.items() if row.sees == COUPLED)


def _recipe(
    optimizer: str, learning_rate: float, num_steps: int = 10_000, ema_decay: float = 0.0
) -> TrainConfig:
    """Training on 128 texts a step, at a constant rate after 500 steps."""
    adam = OptimizerConfig(name=optimizer, learning_rate=learning_rate, warmup_steps=500)
    return TrainConfig(num_steps, batch_size=128, optimizer=adam, ema_decay=ema_decay)


def stage_of(distiller: str) -> str:
    """The name of a distiller's rounds in config, metrics and checkpoints: its own, or "distill" for SDTT."""
    return "distill" if distiller == SDTT else distiller


@dataclasses.dataclass(frozen=True)
class DistillStage(DistillConfig):
    """The rounds, with the fields of `DistillConfig`, and the training of each."""

    # Students' adapters, which are trained on top of the first teacher's frozen parameters.
    lora: LoraConfig = LoraConfig()
    # Steps of each round, batch, optimizer. The default is the paper's recipe.
    train: TrainConfig = _recipe("adam", 6e-5, ema_decay=0.9999)

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule = self.train.optimizer.schedule
        require(
            self.reset_optimizer_on_growth or self.num_rounds == 1 or schedule == "constant",
            f"train.optimizer.schedule={schedule} ends after one round, and reset_optimizer_on_growth=False "
            "does not restart it, so later rounds would learn nothing; take reset_optimizer_on_growth=True "
            'or schedule="constant".',
        )


@dataclasses.dataclass(frozen=True)
class CoupledStage(CoupledDistillConfig):
    """Noise-coupled distillation, with the fields of `CoupledDistillConfig`, and its training."""

    noise: NoiseConfig = dataclasses.field(default_factory=NoiseConfig)  # what the student sees
    # Teacher trajectories that are stored for each round; each gives many training states. In hindsight, as
    # many texts are stored, with their noise at 4 bytes a number. 0 stores none; each training step then
    # makes its own, which takes the teacher's `num_calls` calls.
    num_trajectories: int = 65_536
    # Trajectories of the first round that another run stored with the same settings, `DIR/coupled/01/pool`;
    # made if empty.
    pool: str = ""
    calls: tuple[int, ...] = (1, 2, 4, 8)  # at which teacher and student are measured, ascending
    train: TrainConfig = _recipe("adam", 3e-4, ema_decay=0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(0, self, "num_trajectories")
        made = self.num_rounds * self.train.num_steps * self.train.batch_size
        require(
            (self.num_trajectories or made) < INT32,
            f"num_trajectories={self.num_trajectories} must be below 2**31, because int32 numbers them; 0 "
            f"stands for num_rounds * train.num_steps * train.batch_size = {made}.",
        )
        require(len(self.calls) > 0, "calls must name at least one number of network calls.")
        each(whole, 1, calls=self.calls)
        require(list(self.calls) == sorted(set(self.calls)), f"calls={self.calls} must ascend.")
        require(
            self.noise.kind != LATENT,
            f"noise.kind={self.noise.kind!r} is one value for a whole text and says nothing about the noise "
            'of its tokens; take "full", "two-level", "projected" or "masks", or the distiller "mixture".',
        )
        require(
            self.noise.kind != MASKS or self.num_distill_calls == 0,
            f'noise.kind="masks" needs num_distill_calls=0, not {self.num_distill_calls}: masks do not '
            "determine the student's tokens, so the student cannot be the next round's teacher.",
        )

    def check_vocabulary(self, size: int) -> None:
        """Raises `ConfigError` if there are more masks than tokens, MASK not counted."""
        require(
            self.noise.kind != MASKS or self.independent or self.noise.num_values <= size,
            f"config.coupled.noise.num_values={self.noise.num_values} is more masks than there are tokens "
            f"({size}); take at most {size}, or set coupled.independent=True.",
        )

    @property
    def determines(self) -> bool:
        """Whether the noise that the student sees determines the tokens that it writes."""
        return self.noise.kind != MASKS and not self.independent


@dataclasses.dataclass(frozen=True)
class AlphaStage(AlphaConfig):
    """Training for few calls that starts from the teacher, but uses no targets: `AlphaConfig`."""

    train: TrainConfig = _recipe("adam", 6e-5, ema_decay=0.999)


@dataclasses.dataclass(frozen=True)
class MixtureStage(MixtureConfig):
    """A mixture of students, with the fields of `MixtureConfig`."""

    # The values of a text's latent: the size of the mixture. Training costs as many times more.
    num_values: int = 4
    train: TrainConfig = _recipe("adam", 6e-5, ema_decay=0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.noise  # refuses a wrong number

    @property
    def noise(self) -> NoiseConfig:
        """What the student sees: its text's latent."""
        return NoiseConfig(LATENT, num_values=self.num_values)


@dataclasses.dataclass(frozen=True)
class MmdStage(MmdConfig):
    """Discrepancy of completions, with the fields of `MmdConfig`. The default is the paper's recipe."""

    train: TrainConfig = _recipe("adamw", 1e-4, num_steps=4_000)


@dataclasses.dataclass(frozen=True)
class IdlmStage(IdlmConfig):
    """Inverse distillation, with the fields of `IdlmConfig`. The default is the paper's recipe."""

    train: TrainConfig = _recipe("adamw", 1e-6)


@dataclasses.dataclass(frozen=True)
class CoupledIdlmStage(CoupledIdlmConfig):
    """Inverse distillation of the coupled student, with the fields of `CoupledIdlmConfig`."""

    train: TrainConfig = _recipe("adam", 1e-4)
