"""Published peak numbers of the chips, and the slices that can be compiled for: the one table of both."""

import contextlib
import dataclasses
import difflib
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from sdtt_jax.errors import ConfigError, UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as its maker describes it.

    Attributes:
      name: as in a topology.
      flops: peak bfloat16 FLOP/s.
      memory: bytes of HBM.
      memory_bandwidth: bytes/s of HBM.
      network: bytes/s that a chip can send to its neighbours, over all its links.
      torus: dimensions of the network; each has an equal share of `network`. 1 is a switch.
      accelerator_type: what `TPU_ACCELERATOR_TYPE` calls 8 of them.
      source: where the numbers are from.
    """

    name: str
    flops: float
    memory: float
    memory_bandwidth: float
    network: float
    torus: int
    accelerator_type: str
    source: str


GIB = 2**30
# "Bidirectional ICI bandwidth per chip" counts both directions; half of it can be sent.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 16 * GIB, 819e9, 400e9 / 2, 2, "v5litepod-8",
             "https://docs.cloud.google.com/tpu/docs/v5e"),
        Chip("v6e", 918e12, 32 * GIB, 1638e9, 800e9 / 2, 2, "v6e-8",
             "https://docs.cloud.google.com/tpu/docs/v6e"),
        Chip("v5p", 459e12, 95 * GIB, 2765e9, 1200e9 / 2, 3, "v5p-16",
             "https://docs.cloud.google.com/tpu/docs/v5p"),
        Chip("v4", 275e12, 32 * GIB, 1228e9, 600e9 / 2, 3, "v4-16",
             "https://docs.cloud.google.com/tpu/docs/v4"),
        Chip("h100", 989e12, 80e9, 3350e9, 900e9 / 2, 1, "",
             "https://www.nvidia.com/en-us/data-center/h100"),
    )
}  # fmt: skip
# The part of HBM that a program may use: what libtpu reports as the limit when it runs out.
USABLE = {"v5e": 15.75 * GIB, "v6e": 31.25 * GIB, "v5p": 95.74 * GIB, "v4": 30.75 * GIB}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice.

    Attributes:
      chip: of what.
      sides: chips along each dimension of the torus.
      slices: how many such slices, connected by the data-centre network.
    """

    chip: Chip
    sides: tuple[int, ...]
    slices: int = 1

    @property
    def stand_in(self) -> bool:
        """Whether XLA's CPU compiler stands in for the chip's own, which fuses otherwise."""
        return not self.chip.accelerator_type

    @property
    def chips(self) -> int:
        return math.prod(self.sides) * self.slices

    @property
    def usable_memory(self) -> float:
        """Bytes of a chip that a program may use."""
        return USABLE.get(self.chip.name, self.chip.memory)

    def __str__(self) -> str:
        name = f"{self.chip.name}:{'x'.join(map(str, self.sides))}"
        return name if self.slices == 1 else f"{name} × {self.slices}"


def compile_only() -> None:
    """Nothing will be computed but on the CPU, and libtpu must not look for a TPU; call it first."""
    jax.config.update("jax_platforms", "cpu")
    os.environ.update({"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"})


def parse_topology(name: str, slices: int = 1) -> Topology:
    """`v5e:16x16` → `Topology`.

    Raises:
      ConfigError: an unknown chip or a name that does not parse.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if match is None:
        raise ConfigError(
            f"--topology={name} must be CHIP:SIDES, for example v5e:16x16, v5p:8x8x8 or h100:8."
        )
    chip = CHIPS.get(match[1])
    if chip is None:
        near = difflib.get_close_matches(match[1], CHIPS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"--topology={name}: {match[1]} is none of {', '.join(CHIPS)}{hint}")
    sides = tuple(map(int, match[2].split("x")))
    if 0 in sides or len(sides) != chip.torus:
        example = "x".join(["4"] * chip.torus)
        raise ConfigError(
            f"--topology={name}: {chip.name} has {chip.torus} side(s), for example {chip.name}:{example}."
        )
    return Topology(chip, sides, slices)


def describe_devices(topology: Topology) -> list[Any]:
    """Devices to compile for; no machine has to have them.

    Raises:
      UserError: libtpu is not installed.
      ConfigError: the slice does not exist.
    """
    if topology.stand_in:
        return _virtual_devices(topology)
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", topology.chip.accelerator_type)
    try:
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{topology.chip.name}:{'x'.join(map(str, topology.sides))}",
            **({"num_slices": topology.slices} if topology.slices > 1 else {}),
        )
    except Exception as error:  # What libtpu raises has many types.
        text = str(error).strip() or type(error).__name__
        if "libtpu" in text.lower() or "not found" in text.lower() or "No module" in text:
            raise UserError(
                f"Compiling for {topology} needs the TPU compiler: pip install 'sdtt_jax[tpu]' ({text[:200]})"
            ) from None
        raise ConfigError(f"--topology={topology} cannot be compiled for: {text[:300]}") from None
    return list(description.devices)


def _virtual_devices(topology: Topology) -> list[Any]:
    # Refused once JAX has looked at its devices; there may be enough of them.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", topology.chips)
    devices = jax.devices("cpu")
    if len(devices) < topology.chips:
        raise UserError(
            f"{topology} is compiled for {topology.chips} virtual CPU devices, and there are {len(devices)}: "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={topology.chips}."
        )
    return devices[: topology.chips]
