"""Shared by the tests against the reference's values: networks with its weights, its arrays."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.schedule import Schedule, make_schedule
from sdtt_jax.interchange.layouts import published_params, recognised
from sdtt_jax.interchange.renaming import Stored
from sdtt_jax.interchange.safetensors import Tensors
from sdtt_jax.interchange.tables.reference import DENOISER
from sdtt_jax.networks.denoiser import Denoiser

# The reference's own default: log-linear with eps 1e-3.
SCHEDULE: Schedule = make_schedule()


class ReferenceNetwork(NamedTuple):
    """A denoiser with the reference's weights; `columns` are the vocabulary's, MASK included."""

    denoiser: Denoiser
    params: Any

    @property
    def diffusion(self) -> MaskedDiffusion:
        return MaskedDiffusion(self.denoiser, SCHEDULE)

    @property
    def columns(self) -> slice:
        return slice(0, self.denoiser.mask_id + 1)


def arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of one .npz file; token ids as int32."""
    with np.load(folder / f"{name}.npz") as file:
        return {
            key: value.astype(np.int32) if value.dtype == np.int64 else value
            for key, value in file.items()
        }


def network(folder: Path, name: str) -> ReferenceNetwork:
    """`teacher_hub` or `student_hub`; not time-conditioned, as the published models."""
    length = json.loads((folder / "config.json").read_text())["model"]["length"]
    tensors = Tensors(folder / f"{name}.safetensors")
    published = recognised(DENOISER, tensors, Stored({"length": length}))
    params = jax.device_put(published_params(published))
    return ReferenceNetwork(Denoiser(published.config), params)


def target_files(folder: Path) -> list[str]:
    """Names of the stored trajectories, `targets_k{K}_{sampler}`, without suffix."""
    return sorted(path.stem for path in folder.glob("targets_k*.npz"))
