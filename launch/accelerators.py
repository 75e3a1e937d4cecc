"""The table of accelerators: peak numbers and slices of each chip, and their names in every tool.

Sources, read in November 2026; the table itself names those of the peak numbers:
  topologies, GKE names, machine types: UserFacingNameToSystemCharacteristics in
    https://github.com/AI-Hypercomputer/xpk/blob/main/src/xpk/core/system_characteristics.py and
    https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
  runtime versions: https://cloud.google.com/tpu/docs/runtimes
  sizes of slices, up to the largest: https://docs.cloud.google.com/tpu/docs/v5e, …/v6e, …/v5p, …/v4
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip, as its maker describes it."""

    name: str  # as in a topology, `v5e:16x16`
    flops: float  # peak bfloat16 FLOP/s
    memory: float  # bytes of HBM
    # Bytes of HBM that a program may use; for TPUs, the limit that libtpu reports when it runs out.
    usable: float
    bandwidth: float  # bytes/s of HBM
    # Bytes/s that a chip can send to its neighbours, over all its links: half of the published
    # "bidirectional" number, which counts both directions.
    network: float
    # Bytes/s that a chip can send to other slices or nodes: its share of its pod's or DGX's bandwidth. None
    # is published for the v4, so it has the v5p's.
    between: float
    # Dimensions of the network, which share `network` equally; 1 is a switch.
    torus: int = 1
    largest: int  # chips of the largest slice or node
    prefix: str = ""  # of Cloud TPU's accelerator types, `v5litepod-256`; empty for GPUs
    # What an accelerator type counts per chip: 2 where it counts TensorCores, 1 where it counts chips.
    cores: int = 1
    # The slices that can be rented: number of chips -> GKE's `gke-tpu-topology`.
    slices: Mapping[int, str]
    gke: str  # value of GKE's node label `gke-tpu-accelerator` or `gke-accelerator`
    machine: str  # GKE's machine type of a host; for TPUs, without its number of chips
    runtime: str = ""  # software version of a TPU VM; empty for GPUs
    source: str  # where the peak numbers are from
    # JAX's names for it, `jax.Device.device_kind`; other boards with the same GPU have other peaks.
    devices: tuple[str, ...]

    @property
    def kind(self) -> str:
        """ "tpu" or "gpu"."""
        return "tpu" if self.runtime else "gpu"


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v5e", flops=197e12, memory=16 * GIB, usable=15.75 * GIB,
            bandwidth=819e9, network=400e9 / 2, between=6.4e12 / 8 / 256, torus=2, largest=256,
            prefix="v5litepod", cores=1, slices=_PLANE, runtime="v2-alpha-tpuv5-lite",
            gke="tpu-v5-lite-podslice", machine="ct5lp-hightpu",
            source="https://docs.cloud.google.com/tpu/docs/v5e",
            devices=("TPU v5 lite", "TPU v5e"),
        ),
        Chip(
            name="v6e", flops=918e12, memory=32 * GIB, usable=31.25 * GIB,
            bandwidth=1638e9, network=800e9 / 2, between=25.6e12 / 8 / 256, torus=2, largest=256,
            prefix="v6e", cores=1, slices=_PLANE, runtime="v2-alpha-tpuv6e",
            gke="tpu-v6e-slice", machine="ct6e-standard",
            source="https://docs.cloud.google.com/tpu/docs/v6e",
            devices=("TPU v6 lite", "TPU v6e"),
        ),
        Chip(
            name="v5p", flops=459e12, memory=95 * GIB, usable=95.74 * GIB,
            bandwidth=2765e9, network=1200e9 / 2, between=50e9 / 8, torus=3, largest=6144,
            prefix="v5p", cores=2, slices=_CUBE, runtime="v2-alpha-tpuv5",
            gke="tpu-v5p-slice", machine="ct5p-hightpu",
            source="https://docs.cloud.google.com/tpu/docs/v5p",
            devices=("TPU v5", "TPU v5p"),
        ),
        Chip(
            name="v4", flops=275e12, memory=32 * GIB, usable=30.75 * GIB,
            bandwidth=1228e9, network=600e9 / 2, between=50e9 / 8, torus=3, largest=4096,
            prefix="v4", cores=2, slices=_CUBE, runtime="tpu-ubuntu2204-base",
            gke="tpu-v4-podslice", machine="ct4p-hightpu",
            source="https://docs.cloud.google.com/tpu/docs/v4",
            devices=("TPU v4",),
        ),
        Chip(
            name="h100", flops=989e12, memory=80e9, usable=80e9,
            bandwidth=3350e9, network=900e9 / 2, between=400e9 / 8, slices=_NODE, largest=8,
            gke="nvidia-h100-80gb", machine="a3-highgpu-8g",
            source="https://www.nvidia.com/en-us/data-center/h100",
            devices=("NVIDIA H100 80GB HBM3",),
        ),
        Chip(
            name="h200", flops=989e12, memory=141e9, usable=141e9,
            bandwidth=4800e9, network=900e9 / 2, between=400e9 / 8, slices=_NODE, largest=8,
            gke="nvidia-h200-141gb", machine="a3-ultragpu-8g",
            source="https://www.nvidia.com/en-us/data-center/h200",
            devices=("NVIDIA H200",),
        ),
        Chip(
            name="b200", flops=2250e12, memory=180e9, usable=180e9,
            bandwidth=8000e9, network=1800e9 / 2, between=400e9 / 8, slices=_NODE, largest=8,
            gke="nvidia-b200", machine="a4-highgpu-8g",
            source="https://www.nvidia.com/en-us/data-center/dgx-b200",
            devices=("NVIDIA B200",),
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One slice of TPUs, or one node of GPUs."""

    chip: Chip  # its kind of chip
    chips: int  # chips in the slice or node

    @property
    def name(self) -> str:
        """Its name in a spec: Cloud TPU's accelerator type for TPUs, the chip's name for GPUs."""
        chip = self.chip
        return f"{chip.prefix}-{self.chips * chip.cores}" if chip.kind == "tpu" else chip.name

    @property
    def topology(self) -> str:
        """GKE's node label `gke-tpu-topology`; empty for GPUs."""
        return self.chip.slices[self.chips]

    @property
    def chips_per_host(self) -> int:
        """Chips of a host: four, or eight for a node of GPUs and for a 2x4 slice, which are one host."""
        return 8 if self.chip.kind == "gpu" or self.topology == "2x4" else 4

    @property
    def hosts(self) -> int:
        """Hosts of the slice; 1 for a node."""
        return self.chips // self.chips_per_host

    @property
    def machine(self) -> str:
        """GKE's machine type of a host."""
        machine = self.chip.machine
        return f"{machine}-{self.chips_per_host}t" if self.chip.kind == "tpu" else machine

    @property
    def skypilot(self) -> str:
        """SkyPilot's `resources.accelerators`."""
        return (
            f"tpu-{self.name}" if self.chip.kind == "tpu" else f"{self.name.upper()}:{self.chips}"
        )


ACCELERATORS = {
    accelerator.name: accelerator
    for chip in CHIPS.values()
    for accelerator in (Accelerator(chip, chips) for chips in chip.slices)
}


def chip_of_device(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`; None if the table lacks it."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.devices), None)


def find(name: str) -> Accelerator:
    """The accelerator called `name`; the error for an unknown name suggests the nearest ones."""
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
