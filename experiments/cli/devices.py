"""The flag --mesh: the devices on which a loaded model computes."""

import re

import jax
from absl import flags
from jax.sharding import Mesh

from sdtt_jax.config import require
from sdtt_jax.parallel.mesh import AXES, MeshConfig, make_mesh

_MESH = flags.DEFINE_list(
    "mesh",
    [],
    "DATA,FSDP,MODEL: devices along each axis; DATA may be -1, for all remaining devices. By default all "
    "devices are along DATA.",
)


def chosen_mesh() -> Mesh | None:
    """The mesh that --mesh asks for; None if there is a single device and no flag."""
    sizes = [text.strip() for text in _MESH.value or []]
    if not sizes:
        return make_mesh(MeshConfig()) if jax.device_count() > 1 else None
    numbers = [int(text) for text in sizes if re.fullmatch("-?[0-9]+", text)]
    require(
        len(numbers) == len(sizes) == 3,
        f"--mesh={','.join(sizes)} must be three whole numbers: DATA,FSDP,MODEL.",
    )
    for axis, number in zip(AXES, numbers, strict=True):
        rest = axis == "data" and number == -1
        need = "positive, or -1 for the rest" if axis == "data" else "positive; only DATA may be -1"
        require(
            number > 0 or rest,
            f"--mesh={','.join(sizes)}: {axis.upper()} is {number}, but must be {need}.",
        )
    return make_mesh(MeshConfig(*numbers))
