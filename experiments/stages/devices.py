"""Whether a mesh, of devices that exist or of abstract ones, can split the batches and networks of a run."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.distillers import DISTILLERS, stage_of
from experiments.settings import RunConfig
from experiments.stages.objective import Networks
from sdtt_jax.interchange.adapters import network_shardings
from sdtt_jax.networks.config import VOCAB_MULTIPLE
from sdtt_jax.parallel.mesh import check_batch_size


def sections_of(config: RunConfig, stages: Sequence[str]) -> list[str]:
    """The sections of the config whose models the named stages train or take, in the order of the stages."""
    found = [section for section in ("teacher", "judge") if section in stages]
    return found + [stage_of(name) for name in config.distillers if "distill" in stages]


def is_trained(config: RunConfig, section: str) -> bool:
    """Whether a section trains anything: an existing teacher or judge is taken, but no judge's skeleton."""
    stage = getattr(config, section)
    taken = section in ("teacher", "judge") and bool(stage.checkpoint)
    return not taken or (section == "judge" and bool(stage.skeleton))


def check_batches(config: RunConfig, sections: Iterable[str], mesh: Any) -> None:
    """Raises `ConfigError` for a batch size of a section's training that the mesh does not divide."""
    for section in sections:
        if is_trained(config, section):
            train = getattr(config, section).train
            field = f"{section}.train.batch_size"
            check_batch_size(train.batch_size, mesh, train.microbatches, field)


def check_split(run: Networks, sections: Iterable[str], mesh: Any) -> None:
    """Raises `ConfigError`, with the section's name, for a network that the mesh does not divide."""
    for section in sections if mesh.size > 1 else ():
        found: dict[str, Any] = {section: run.denoiser}
        if section == "judge":
            found = {"judge": run.judge}
            if run.config.judge.skeleton:
                found["judge.skeleton"] = run.skeleton
        elif section in DISTILLERS:
            found = {section: run.student(section)}
        for name, network in found.items():
            network_shardings(network, mesh, name=f"The network of config.{name}")


def check_devices(config: RunConfig, stages: Sequence[str], mesh: Any) -> None:
    """`check_batches` and `check_split` of the named stages, before there is a run.

    What is finished is not known here, nor are the vocabulary and the sizes of published models.
    """
    sections = [name for name in sections_of(config, stages) if is_trained(config, name)]
    check_batches(config, sections, mesh)
    own = [name for name in sections if name == "judge" or not config.published]
    check_split(_Configured(config), own, mesh)


@dataclasses.dataclass(frozen=True)
class _Configured(Networks):
    """The networks of a config that names no published model, with a vocabulary that the mesh divides."""

    config: RunConfig
    sequences = None

    @property
    def vocab_size(self) -> int:
        return VOCAB_MULTIPLE * self.config.mesh.model - 1
