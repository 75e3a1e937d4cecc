"""One training of a run, of all parameters or of adapters, and the interface of distillers."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.settings import RunConfig
from experiments.stages.context import Run
from experiments.stages.workdir import final, is_delivered
from sdtt_jax.checkpoints.orbax import require_plain
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.interchange.adapters import adapter_facts, read_base
from sdtt_jax.keys import generator, purpose_key, purpose_seed
from sdtt_jax.networks.lora import LoraConfig, frozen
from sdtt_jax.objectives import BASE
from sdtt_jax.parallel import processes
from sdtt_jax.paths import write_text
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.state import TrainState
from sdtt_jax.training.step import TrainStep
from sdtt_jax.typing import Tree


def base_of(run: Run) -> str:
    """The folder, within the run, of the base of adapters: what the teacher began as, or the teacher."""
    stage = run.workdir.base if run.config.teacher.lora.rank else run.workdir.teacher
    return f"{stage.name}/{final(stage).name}"


def facts_of_adapters(run: Run, lora: LoraConfig) -> dict[str, Any]:
    """Metadata to store with adapters; empty if there are none."""
    return adapter_facts(lora, run.workdir.root, base_of(run)) if lora.rank else {}


class WithoutBase(Checkpoints):
    """Checkpoints without the base of adapters, which is stored only once."""

    def save(self, state: TrainState) -> bool:
        """Like `Checkpoints.save`."""
        context = {name: x for name, x in state.context.items() if name != BASE}
        return super().save(state.replace(context=context))


class Batches(NamedTuple):
    """The source of batches of a stage that trains on other things than the texts of the training split."""

    # `(seed, number, size)`: batch `number` of a seed, on the mesh.
    batch: Callable[[int, int, int], Tree]
    # Everything that determines the batches, beyond config and data; stored with the checkpoints.
    facts: dict[str, Any]


def deliver_base(run: Run) -> None:
    """Stores the model that the teacher's adapters are added to, unless that is done already."""
    folder = run.workdir.base
    if not is_delivered(folder):
        base = jax.jit(frozen, static_argnames="config")(run.base_params(), run.config.teacher.lora)
        run.deliver(folder, run.denoiser, base, stage="base", source=run.config.teacher.init_from)


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """One training of a run: a stage, or a round of distillation."""

    run: Run
    # `teacher`, `judge` and `skeleton` have round 0, `distill` and the other distillers' names 1, 2, …
    stage: str
    round: int
    config: TrainConfig  # steps, batch, optimizer
    step_fn: TrainStep  # the compiled step
    start: Callable[[], TrainState]  # makes the state to begin with
    abstract: TrainState  # shapes and shardings of the state
    batches: Batches | None = None  # where batches come from; None: from the training split
    every: int = 1  # 1, or n for a network that is trained on every n-th token
    # Adapters to train; with rank 0 all parameters are. `start` and `abstract` leave out the adapters' base.
    lora: LoraConfig = LoraConfig()

    @property
    def tags(self) -> dict[str, Any]:
        """Stage and round, for metrics and messages."""
        return {"stage": self.stage, "round": self.round}

    @property
    def folder(self) -> Path:
        """The folder of the training's checkpoints."""
        return self.run.workdir.stage(self.stage, self.round)

    def checkpoints(self) -> Checkpoints:
        """The checkpoints in `folder`, to add to; `ConfigError` if none could be read again from there."""
        require_plain(self.folder)
        keep, keep_every = self.config.keep, self.config.keep_every
        return WithoutBase(self.folder, keep=keep, keep_every=keep_every, metadata=self.metadata)

    @property
    def tokens_per_batch(self) -> int:
        """Positions of a step, prompts and padding too; with `every` > 1, only every n-th counts."""
        return self.config.batch_size * len(range(0, self.run.config.data.length, self.every))

    @property
    def key(self) -> jax.Array:
        """The key of the training; each step folds its number into it."""
        return purpose_key(self.run.config.seed, self.stage, self.round)

    @property
    def data_seed(self) -> int:
        """Seed of the stage's stream of batches."""
        return purpose_seed(self.run.config.seed, f"{self.stage}.data")

    @property
    def metadata(self) -> dict[str, Any]:
        """What the state depends on beyond the config; stored with the checkpoints and compared on reading.

        The config itself is compared by `claim_workdir`.
        """
        facts = self.tags | {"data": self.run.data_digest, "random": generator()}
        if self.batches and self.batches.facts:
            facts["pool"] = self.batches.facts
        return facts | facts_of_adapters(self.run, self.lora)

    def state(self, checkpoints: Checkpoints, before: int | None = None) -> TrainState:
        """The state to continue from: of the latest checkpoint (below step `before`), or a new one."""
        restored = checkpoints.restore(self.abstract, expect=self.metadata, before=before)
        state = self.start() if restored is None else restored[0]
        if not self.lora.rank:
            return state
        run = self.run
        base = read_base(run.workdir.root / base_of(run), run.denoiser, self.lora, run.mesh)
        return state.replace(context=state.context | {BASE: base})

    def batch_number(self, step: int) -> int:
        """The number, in the stage's stream of batches, of the batch that step `step` (from 0) takes."""
        # A round continues in the data where the previous round ended.
        return max(self.round - 1, 0) * self.config.num_steps + step

    def batch_at(self, step: int) -> Any:
        """The batch of a step (from 0), on the mesh: `[batch, length]` int32, or what `batches` gives."""
        batch = self.batches.batch if self.batches else self.run.texts
        return batch(self.data_seed, self.batch_number(step), self.config.batch_size)


class Rounds(NamedTuple):
    """How each round of a distiller is trained and delivered."""

    job: Callable[[Run, int], TrainingJob]  # the training of a round, from its number
    deliver: Callable[[Run, int, TrainState], None]  # writes what a trained round delivers
    describe: Callable[[RunConfig, int], str]  # a line about a round, for the log


def averaged(state: TrainState) -> Any:
    """The moving average of a state's parameters if it keeps one, else the parameters."""
    return state.params if state.ema_params is None else state.ema_params


def report_rejected(job: TrainingJob, step: int, values: Mapping[str, float]) -> None:
    """Logs a rejected update, and records what `--replay` needs to look at its batch again."""
    rejected = job.run.workdir.rejected
    job.run.log(
        f"  step {step}: loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}: this update "
        f"was rejected; its batch is named in {rejected.name}"
    )
    record = job.tags | {
        "step": step,
        "loss": str(values["loss"]),
        "grad_norm": str(values["grad_norm"]),
        "data_seed": job.data_seed,
        "batch": job.batch_number(step - 1),
        "batch_size": job.config.batch_size,
    }
    if processes.is_first():
        job.run.check_place()
        before = rejected.read_text(encoding="utf-8") if rejected.exists() else ""
        write_text(rejected, before + json.dumps(record) + "\n")
