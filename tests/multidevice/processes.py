"""`programs.run` by several processes together; process 0 prints JSON.

python -m launch.local --processes=4 --devices_per_process=2 -- tests.multidevice.processes DIRECTORY FROM
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

import sdtt_jax
from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh


def main(directory: Path, restore_from: Path) -> None:
    processes.initialize()
    # Importing it computes a schedule, so the processes must have met before.
    from tests.multidevice import programs

    result = programs.run(programs.BRIEF, directory, restore_from, brief=True)
    result["processes"] = jax.process_count()
    path = Path(__file__).parent.parent / "golden" / "reference_tiny" / "teacher_hub.safetensors"
    tokens = np.arange(8 * 32).reshape(8, 32) % 90
    mesh = make_mesh(MeshConfig(*programs.BRIEF))
    together = processes.to_host(sdtt_jax.load(path, mesh=mesh).logits(tokens))
    other = path.with_name("student_hub.safetensors")
    try:
        sdtt_jax.load(other if jax.process_index() == 2 else path, mesh=mesh)
    except ConfigError as error:
        result["other files"] = str(error)
    if processes.is_first():
        # How far the logits of a denoiser that all load are from those of a process's own copy.
        result["published"] = float(np.abs(together - sdtt_jax.load(path).logits(tokens)).max())
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
