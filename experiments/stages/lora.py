"""Stages that may train adapters alone: where their base is, and how a state goes to disk without it."""

import dataclasses
from typing import Any

import jax

from experiments.stages.context import Run
from experiments.stages.workdir import final, is_delivered
from sdtt_jax.checkpoints.store import Checkpoints, load_params
from sdtt_jax.interchange.adapters import adapter_facts, network_shardings
from sdtt_jax.keys import purpose_key
from sdtt_jax.networks.lora import LoraConfig, frozen, init_adapters
from sdtt_jax.objectives import BASE, lora_loss
from sdtt_jax.training.state import TrainState
from sdtt_jax.training.step import LossFn
from sdtt_jax.typing import Params


@dataclasses.dataclass(frozen=True)
class Adapters:
    """What a stage trains: adapters beside frozen parameters, their base, or all parameters."""

    run: Run  # whose
    # Of the adapters; with rank 0 there are none, and nothing here changes anything.
    config: LoraConfig

    @property
    def folder(self) -> str:
        """The folder of the run with the base: what the teacher started from, or the whole teacher."""
        workdir = self.run.workdir
        stage = workdir.base if self.run.config.teacher.lora.rank else workdir.teacher
        return f"{stage.name}/{final(stage).name}"

    @property
    def facts(self) -> dict[str, Any]:
        """What is stored with what is trained."""
        if not self.config.rank:
            return {}
        return adapter_facts(self.config, self.run.workdir.root, self.folder)

    def init(self) -> Params:
        """Fresh ones, boxed."""
        key = purpose_key(self.run.config.seed, "lora.init")
        if not self.config.rank:
            return self.run.denoiser.init(key)
        return init_adapters(self.run.denoiser, self.config, key)

    def loss(self, loss: LossFn) -> LossFn:
        """A loss of all parameters, as one of what is trained."""
        return lora_loss(loss, self.config) if self.config.rank else loss

    def beside(self, state: TrainState) -> TrainState:
        """A state with the base in its context, which nothing else holds: one copy is on the devices."""
        if not self.config.rank:
            return state
        shardings = network_shardings(self.run.denoiser, self.run.mesh)
        base, _ = load_params(self.run.workdir.root / self.folder, shardings)
        return state.replace(context=state.context | {BASE: frozen(base, self.config)})


@dataclasses.dataclass(frozen=True)
class WithoutBase:
    """Saves states without the base, which is on disk once."""

    checkpoints: Checkpoints

    def save(self, state: TrainState) -> bool:
        """As `Checkpoints.save`."""
        context = {name: x for name, x in state.context.items() if name != BASE}
        return self.checkpoints.save(state.replace(context=context))

    def wait(self) -> None:
        """As `Checkpoints.wait`."""
        self.checkpoints.wait()


def deliver_base(run: Run) -> None:
    """Writes the model that the teacher starts from, once, as adapters stand beside it."""
    folder = run.workdir.base
    if not is_delivered(folder):
        base = jax.jit(frozen, static_argnames="config")(run.base_params(), run.config.teacher.lora)
        run.deliver(folder, run.denoiser, base, stage="base", source=run.config.teacher.init_from)
