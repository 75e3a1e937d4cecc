"""The one table of accelerators: the peak numbers of each chip, its slices, and what every tool calls them.

Sources, read in November 2026; those of the peak numbers stand in the table:
  topologies, GKE names, machine types: UserFacingNameToSystemCharacteristics in
    https://github.com/AI-Hypercomputer/xpk/blob/main/src/xpk/core/system_characteristics.py and
    https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
  runtime versions: https://cloud.google.com/tpu/docs/runtimes
  sizes of Cloud TPU: https://docs.cloud.google.com/tpu/docs/v5e, …/v6e, …/v5p, …/v4
  SkyPilot: https://docs.skypilot.co/en/latest/reference/tpu.html (tpu-NAME), `sky show-gpus`
"""

import dataclasses
import difflib
from collections.abc import Mapping

from sdtt_jax.errors import ConfigError

GIB = 2**30
# Chips of a slice -> its topology.
_PLANE = {8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8",
}  # fmt: skip
_NODE = {8: ""}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as its maker describes it.

    Attributes:
      name: in a topology, `v5e:16x16`.
      flops: peak bfloat16 FLOP/s.
      memory: bytes of HBM.
      usable: the part of them that a program may use; for TPUs, what libtpu reports as the limit when
        it runs out.
      bandwidth: bytes/s of HBM.
      network: bytes/s that a chip can send to its neighbours, over all its links; half of what is
        published as "bidirectional", which counts both directions.
      torus: dimensions of the network; each has an equal share of `network`. 1 is a switch.
      prefix: of Cloud TPU's accelerator types, `v5litepod-256`; for GPUs, the name of a node.
      cores: that an accelerator type counts for a chip: TensorCores for some, chips for others.
      slices: those that can be rented, by their chips, with GKE's `gke-tpu-topology`.
      gke: value of GKE's node label `gke-tpu-accelerator` or `gke-accelerator`.
      machine: GKE's machine type of a host; of a TPU's, but for its number of chips.
      runtime: software version of a TPU VM; empty for GPUs.
      source: where the peak numbers are from.
    """

    name: str
    flops: float
    memory: float
    usable: float
    bandwidth: float
    network: float
    torus: int
    prefix: str
    cores: int
    slices: Mapping[int, str]
    gke: str
    machine: str
    runtime: str
    source: str

    @property
    def kind(self) -> str:
        """ "tpu" or "gpu"."""
        return "tpu" if self.runtime else "gpu"


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 16 * GIB, 15.75 * GIB, 819e9, 400e9 / 2, 2, "v5litepod", 1, _PLANE,
             "tpu-v5-lite-podslice", "ct5lp-hightpu", "v2-alpha-tpuv5-lite",
             "https://docs.cloud.google.com/tpu/docs/v5e"),
        Chip("v6e", 918e12, 32 * GIB, 31.25 * GIB, 1638e9, 800e9 / 2, 2, "v6e", 1, _PLANE,
             "tpu-v6e-slice", "ct6e-standard", "v2-alpha-tpuv6e",
             "https://docs.cloud.google.com/tpu/docs/v6e"),
        Chip("v5p", 459e12, 95 * GIB, 95.74 * GIB, 2765e9, 1200e9 / 2, 3, "v5p", 2, _CUBE,
             "tpu-v5p-slice", "ct5p-hightpu", "v2-alpha-tpuv5",
             "https://docs.cloud.google.com/tpu/docs/v5p"),
        Chip("v4", 275e12, 32 * GIB, 30.75 * GIB, 1228e9, 600e9 / 2, 3, "v4", 2, _CUBE,
             "tpu-v4-podslice", "ct4p-hightpu", "tpu-ubuntu2204-base",
             "https://docs.cloud.google.com/tpu/docs/v4"),
        Chip("h100", 989e12, 80e9, 80e9, 3350e9, 900e9 / 2, 1, "h100", 1, _NODE,
             "nvidia-h100-80gb", "a3-highgpu-8g", "",
             "https://www.nvidia.com/en-us/data-center/h100"),
        Chip("h200", 989e12, 141e9, 141e9, 4800e9, 900e9 / 2, 1, "h200", 1, _NODE,
             "nvidia-h200-141gb", "a3-ultragpu-8g", "",
             "https://www.nvidia.com/en-us/data-center/h200"),
        Chip("b200", 2250e12, 180e9, 180e9, 8000e9, 1800e9 / 2, 1, "b200", 1, _NODE,
             "nvidia-b200", "a4-highgpu-8g", "",
             "https://www.nvidia.com/en-us/data-center/dgx-b200"),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One slice of TPUs, or one node of GPUs.

    Attributes:
      name: what a spec calls it; for TPUs, Cloud TPU's accelerator type.
      chip: of what.
      chips: in the slice or node.
    """

    name: str
    chip: Chip
    chips: int

    @property
    def kind(self) -> str:
        """ "tpu" or "gpu"."""
        return self.chip.kind

    @property
    def topology(self) -> str:
        """GKE's node label `gke-tpu-topology`; empty for GPUs."""
        return self.chip.slices[self.chips]

    @property
    def chips_per_host(self) -> int:
        """Four, but for a node of GPUs and for 2x4, which are one host with eight."""
        return 8 if self.kind == "gpu" or self.topology == "2x4" else 4

    @property
    def hosts(self) -> int:
        """Hosts of the slice; 1 for a node."""
        return self.chips // self.chips_per_host

    @property
    def machine(self) -> str:
        """GKE's machine type of a host."""
        machine = self.chip.machine
        return f"{machine}-{self.chips_per_host}t" if self.kind == "tpu" else machine

    @property
    def skypilot(self) -> str:
        """SkyPilot's `resources.accelerators`."""
        return f"tpu-{self.name}" if self.kind == "tpu" else f"{self.name.upper()}:{self.chips}"


def accelerator_type(chip: Chip, chips: int) -> str:
    """Cloud TPU's name for a slice of that size; a node of GPUs has the name of its chip."""
    return f"{chip.prefix}-{chips * chip.cores}" if chip.kind == "tpu" else chip.prefix


ACCELERATORS = {
    name: Accelerator(name, chip, chips)
    for chip in CHIPS.values()
    for chips in chip.slices
    for name in [accelerator_type(chip, chips)]
}


def find(name: str) -> Accelerator:
    """The accelerator of that name.

    Raises:
      ConfigError: with the nearest names.
    """
    if name not in ACCELERATORS:
        meant = name.lower().replace("v5e", "v5litepod")
        near = difflib.get_close_matches(meant, ACCELERATORS, n=3)
        sizes = [known for known in ACCELERATORS if known.startswith(name.split("-")[0] + "-")]
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"choose from {', '.join(sizes or ACCELERATORS)}."
        )
        raise ConfigError(f"accelerator={name!r} is unknown; {hint}")
    return ACCELERATORS[name]
