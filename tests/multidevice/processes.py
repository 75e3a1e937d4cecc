"""`programs.run` by several processes together, under `launch.local`; process 0 prints JSON.

python -m launch.local --processes=2 --devices_per_process=4 -- tests.multidevice.processes DIRECTORY [FROM]
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

import sdtt_jax
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh


def main(directory: Path, restore_from: Path | None) -> None:
    processes.initialize()
    # Importing it computes a schedule, so the processes must have met before.
    from tests.multidevice import programs

    result = programs.run(programs.BRIEF, directory, restore_from, brief=True)
    result["processes"] = jax.process_count()
    result["published"] = _published(programs.BRIEF)
    if processes.is_first():
        sys.stdout.write(json.dumps(result) + "\n")


def _published(sizes: tuple[int, int, int]) -> float:
    """How far the logits of a denoiser that all load onto one mesh are from those of a process's own copy."""
    path = Path(__file__).parent.parent / "golden" / "reference_tiny" / "teacher_hub.safetensors"
    tokens = np.arange(8 * 32).reshape(8, 32) % 90
    together = sdtt_jax.load(path, mesh=make_mesh(MeshConfig(*sizes))).logits(tokens)
    return float(np.abs(processes.to_host(together) - sdtt_jax.load(path).logits(tokens)).max())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
