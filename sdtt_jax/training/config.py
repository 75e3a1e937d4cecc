"""The config of a training: steps, batch, optimizer, averages, and how often to log and save."""

import dataclasses
import math

from sdtt_jax.config import INT32, instance, require, whole, within
from sdtt_jax.training.optimizers import OptimizerConfig, learning_rate_schedule


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One stage of training.

    Attributes:
      num_steps: steps of the stage, or of each round.
      batch_size: sequences per step, over all devices.
      microbatches: pieces into which a batch is split to save memory; the mean over the batch is the same.
        What a loss spreads evenly over a batch, such as times (`antithetic`) and the share of fully masked
        states, it spreads over each piece by itself, less evenly over the batch.
      optimizer: how parameters are updated.
      ema_decay: decay of the parameters' moving average, ramped up by `ema_decay_at`; 0 keeps none.
      max_rejected: consecutive steps with a non-finite loss or gradient (or a spike) after which
        training stops.
      spike_factor: an update whose loss is above this many times the running mean of the loss is
        rejected like one that is not finite; 0 accepts all. Meant for losses that stay well above 0:
        nothing counts as a spike while their mean is 0 or negative.
      log_every, save_every: steps between metrics lines and between checkpoints.
      keep: how many of the latest checkpoints are kept.
      keep_every: checkpoints of steps that this divides are kept too; 0 keeps none of them.
      check_replicas_every: steps between comparisons of the copies that several devices hold; 0 for
        none. If it is not 0, a state is also compared before it is saved.
    """

    num_steps: int
    batch_size: int
    microbatches: int = 1
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    ema_decay: float = 0.0
    max_rejected: int = 10
    spike_factor: float = 0.0
    log_every: int = 10
    save_every: int = 1000
    keep: int = 2
    keep_every: int = 0
    check_replicas_every: int = 1000

    def __post_init__(self) -> None:
        instance(OptimizerConfig, optimizer=self.optimizer)
        whole(1, self, "num_steps", "batch_size", "microbatches", "max_rejected")
        require(
            self.num_steps < INT32,
            f"num_steps={self.num_steps} must be below 2**31, because steps are counted in int32.",
        )
        whole(1, self, "log_every", "save_every", "keep")
        whole(0, self, "keep_every", "check_replicas_every")
        require(
            self.spike_factor == 0 or 1 < self.spike_factor < math.inf,
            f"spike_factor={self.spike_factor} must be above 1 and finite, or 0 to accept all.",
        )
        within("[0, inf)", self, "spike_factor")
        within("[0, 1)", self, "ema_decay")
        require(
            self.batch_size % self.microbatches == 0,
            f"microbatches={self.microbatches} does not divide batch_size={self.batch_size}; take a divisor.",
        )
        # Raises now, not when the stage begins, if the steps leave no room for the schedule.
        learning_rate_schedule(self.optimizer, self.num_steps)
