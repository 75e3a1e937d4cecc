"""Slices to compile for, which need not exist on this machine."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from launch.accelerators import CHIPS, Accelerator, Chip
from sdtt_jax.config import choose, require
from sdtt_jax.errors import ConfigError, UserError
from sdtt_jax.parallel.mesh import MeshConfig, abstract_mesh, make_mesh


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice, or several connected ones."""

    chip: Chip  # its kind of chip
    sides: tuple[int, ...]  # chips along each dimension of the torus
    slices: int = 1  # how many such slices, connected by the data-centre network

    @property
    def stand_in(self) -> bool:
        """Whether XLA's CPU compiler is used instead of the chip's own, which fuses differently."""
        return self.chip.kind == "gpu"

    @property
    def chips(self) -> int:
        return math.prod(self.sides) * self.slices

    def __str__(self) -> str:
        name = f"{self.chip.name}:{'x'.join(map(str, self.sides))}"
        return name if self.slices == 1 else f"{name} × {self.slices}"


def compile_only() -> None:
    """Restricts JAX to the CPU and keeps libtpu from looking for a TPU; must be called first."""
    jax.config.update("jax_platforms", "cpu")
    os.environ.update(
        {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            # libtpu's lock is meant for processes that share chips, but any other JAX program holds it too.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    )


def parse_topology(name: str, slices: int = 1) -> Topology:
    """The slice, or `slices` connected ones, that a name like `v5e:16x16` means; `ConfigError` if none."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if match is None:
        raise ConfigError(
            f"--topology={name} must be CHIP:SIDES, for example v5e:16x16, v5p:8x8x8 or h100:8."
        )
    choose(f"--topology={name}: chip", match[1], CHIPS)
    chip = CHIPS[match[1]]
    sides = tuple(map(int, match[2].split("x")))
    if 0 in sides or len(sides) != chip.torus:
        example = "x".join(["4"] * chip.torus)
        raise ConfigError(
            f"--topology={name}: {chip.name} has {chip.torus} side(s), for example {chip.name}:{example}."
        )
    count = math.prod(sides)
    require(
        count <= chip.largest,
        f"--topology={name} has {count} chips, but the largest slice of {chip.name} has {chip.largest}; take "
        "several slices with --slices.",
    )
    # A host has two by two chips, unless the slice is a single chip. For slices that do not exist the
    # compiler ends the process, or gives an unhelpful error.
    even = "x".join(str(side + side % 2 if place < 2 else side) for place, side in enumerate(sides))
    require(
        chip.kind == "gpu" or count == 1 or f"{chip.name}:{even}" == name,
        f"--topology={name}: hosts of {chip.name} have 2x2 chips, so the first two sides must be even; the "
        f"nearest slice is {chip.name}:{even}.",
    )
    return Topology(chip, sides, slices)


def describe_devices(topology: Topology) -> list[Any]:
    """Devices to compile for, which need not exist on this machine.

    Raises:
      UserError: libtpu is not installed.
      ConfigError: the slice does not exist.
    """
    if topology.stand_in:
        # JAX refuses this once it has looked at its devices, but there may be enough of them already.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", topology.chips)
        devices = jax.devices("cpu")
        if len(devices) < topology.chips:
            raise UserError(
                f"{topology} needs {topology.chips} virtual CPU devices, but there are only {len(devices)}: "
                f"set XLA_FLAGS=--xla_force_host_platform_device_count={topology.chips}."
            )
        return devices[: topology.chips]
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", Accelerator(topology.chip, 8).name)
    try:
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{topology.chip.name}:{'x'.join(map(str, topology.sides))}",
            **({"num_slices": topology.slices} if topology.slices > 1 else {}),
            **({"chips_per_host_bounds": (1, 1, 1)} if math.prod(topology.sides) == 1 else {}),
            # Both cores of a chip are one device, as JAX has it there; a v4 is two by default.
            **({"chip_config_name": "megacore"} if topology.chip.cores == 2 else {}),
        )
    except Exception as error:  # What libtpu raises has many types.
        text = str(error).strip() or type(error).__name__
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"Compiling for {topology} needs the TPU compiler: pip install -e '.[tpu]' ({text[:200]})"
            ) from None
        raise ConfigError(f"--topology={topology} cannot be compiled for: {text[:300]}") from None
    return list(description.devices)


def mesh_of_devices(config: MeshConfig, topology: Topology, devices: Sequence[Any]) -> Mesh:
    """The mesh of a topology's devices; errors as `make_mesh`, for which nodes of GPUs are slices too."""
    abstract_mesh(config, topology.chips, topology.slices)
    return make_mesh(config, devices)
