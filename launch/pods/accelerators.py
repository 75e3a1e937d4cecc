"""What a slice or node is called by each tool: the one table of accelerators.

Sources, read in November 2026:
  topologies, GKE names, machine types: UserFacingNameToSystemCharacteristics in
    https://github.com/AI-Hypercomputer/xpk/blob/main/src/xpk/core/system_characteristics.py and
    https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
  runtime versions: https://cloud.google.com/tpu/docs/runtimes
  sizes of Cloud TPU: https://docs.cloud.google.com/tpu/docs/v5e, …/v6e, …/v5p, …/v4
  SkyPilot: https://docs.skypilot.co/en/latest/reference/tpu.html (tpu-NAME), `sky show-gpus`
"""

import dataclasses
import difflib
import math

from sdtt_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One slice of TPUs, or one node of GPUs.

    Attributes:
      name: what a spec calls it; for TPUs, Cloud TPU's accelerator type.
      kind: "tpu" or "gpu".
      chips: in the slice or node.
      chips_per_host: of them, on one host.
      gke: value of GKE's node label `gke-tpu-accelerator` or `gke-accelerator`.
      topology: value of GKE's node label `gke-tpu-topology`; empty for GPUs.
      machine: GKE's machine type of a host.
      runtime: software version of a TPU VM; empty for GPUs.
      skypilot: `resources.accelerators` of SkyPilot.
    """

    name: str
    kind: str
    chips: int
    chips_per_host: int
    gke: str
    topology: str
    machine: str
    runtime: str
    skypilot: str

    @property
    def hosts(self) -> int:
        """Hosts of the slice; 1 for a node."""
        return self.chips // self.chips_per_host


# A name counts chips for v5e and v6e, and TensorCores (two a chip) for v5p and v4.
_PLANE = {8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8",
}  # fmt: skip
# prefix, cores per chip, topologies, GKE's name, machine type but for its number of chips, runtime
_TPUS = (
    ("v5litepod", 1, _PLANE, "tpu-v5-lite-podslice", "ct5lp-hightpu", "v2-alpha-tpuv5-lite"),
    ("v6e", 1, _PLANE, "tpu-v6e-slice", "ct6e-standard", "v2-alpha-tpuv6e"),
    ("v5p", 2, _CUBE, "tpu-v5p-slice", "ct5p-hightpu", "v2-alpha-tpuv5"),
    ("v4", 2, _CUBE, "tpu-v4-podslice", "ct4p-hightpu", "tpu-ubuntu2204-base"),
)
# name, GKE's name, machine type, SkyPilot's name; eight to a node
_GPUS = (
    ("h100", "nvidia-h100-80gb", "a3-highgpu-8g", "H100:8"),
    ("h200", "nvidia-h200-141gb", "a3-ultragpu-8g", "H200:8"),
    ("b200", "nvidia-b200", "a4-highgpu-8g", "B200:8"),
)


def _table() -> dict[str, Accelerator]:
    table = {}
    for prefix, cores, topologies, gke, machine, runtime in _TPUS:
        for chips, topology in topologies.items():
            # 2x4 is one host with eight chips; every other host has four.
            per_host = 8 if topology == "2x4" else 4
            name = f"{prefix}-{chips * cores}"
            table[name] = Accelerator(
                name=name,
                kind="tpu",
                chips=chips,
                chips_per_host=per_host,
                gke=gke,
                topology=topology,
                machine=f"{machine}-{per_host}t",
                runtime=runtime,
                skypilot=f"tpu-{name}",
            )
            assert math.prod(map(int, topology.split("x"))) == chips
    for name, gke, machine, skypilot in _GPUS:
        table[name] = Accelerator(name, "gpu", 8, 8, gke, "", machine, "", skypilot)
    return table


ACCELERATORS = _table()


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
