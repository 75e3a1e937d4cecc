"""The flag --mesh: the devices on which a loaded model computes."""

import jax
from absl import flags
from jax.sharding import Mesh

from sdtt_jax.config import require
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh

_MESH = flags.DEFINE_list(
    "mesh",
    [],
    "DATA,FSDP,MODEL: devices along each axis, -1 for the rest; all along DATA by default.",
)


def chosen_mesh() -> Mesh | None:
    """The mesh that --mesh asks for; None if there is a single device and no flag."""
    sizes = [text.strip() for text in _MESH.value or []]
    if not sizes:
        return make_mesh(MeshConfig()) if jax.device_count() > 1 else None
    numbers = [int(text) for text in sizes if text.lstrip("-").isdecimal()]
    require(
        len(numbers) == len(sizes) == 3,
        f"--mesh={','.join(sizes)} must be three whole numbers: DATA,FSDP,MODEL.",
    )
    return make_mesh(MeshConfig(*numbers))
