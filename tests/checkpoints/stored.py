"""States that differ with their step, their checkpoints, and ways to damage them."""

from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.parallel.placement import replicated
from sdtt_jax.training.state import TrainState
from tests.training import toy


def state_at(step: int, width: int = 64) -> TrainState:
    """Numbers that differ with the step, in the shapes that a state has."""
    place = replicated(make_mesh(MeshConfig()))
    values = np.random.default_rng(step).normal(size=(width, 16)).astype(np.float32)

    def tree():
        return {"blocks": {"kernel": values + 1, "bias": values[0].astype(ml_dtypes.bfloat16)}}

    state = TrainState(
        step=np.int32(step),
        params=tree(),
        opt_state=((), (np.int32(step), tree()), None),
        ema_params=tree(),
        ema_count=np.int32(step),
        context={"dt": np.float32(0.5), "flags": np.array([True, False]), "empty": {}},
        rejected=np.int32(0),
        rejected_in_a_row=np.int32(0),
    )
    return jax.device_put(state, place)


def save_three(directory: Path) -> Path:
    """Checkpoints at steps 1, 2, 3."""
    with Checkpoints(directory, keep=3, metadata={"fingerprint": "f", "round": 1}) as checkpoints:
        for step in (1, 2, 3):
            assert checkpoints.save(state_at(step))
    return directory


def restore(directory: Path, **fields):
    with Checkpoints(directory, keep=3) as checkpoints:
        return checkpoints.restore(toy.abstract_like(state_at(0)), **fields)


def largest_array_file(step: Path) -> Path:
    return max((step / "state").rglob("d/*"), key=lambda path: path.stat().st_size)


def metadata_file(step: Path) -> Path:
    [path] = (step / "meta").glob("*.json")
    return path


def flip_bit(path: Path, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def empty(step: Path) -> None:
    for path in sorted(step.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
