"""`programs.run` by several processes together; process 0 prints JSON.

python -m launch.local --processes=4 --devices_per_process=2 -- tests.multidevice.processes DIRECTORY FROM
"""

import json
import platform
import sys
from pathlib import Path

import jax
import numpy as np
from jax._src import cache_key

import sdtt_jax
from sdtt_jax.parallel import processes
from sdtt_jax.parallel.mesh import MeshConfig, make_mesh


def main(directory: Path, restore_from: Path) -> None:
    processes.initialize()
    compile_once()
    # Importing it computes a schedule, so the processes must have met before.
    from tests.multidevice import programs

    result = programs.run(programs.BRIEF, directory, restore_from, brief=True)
    result["processes"] = jax.process_count()
    path = Path(__file__).parent.parent / "golden" / "reference_tiny" / "teacher_hub.safetensors"
    tokens = np.arange(8 * 32).reshape(8, 32) % 90
    mesh = make_mesh(MeshConfig(*programs.BRIEF))
    together = processes.to_host(sdtt_jax.load(path, mesh=mesh).logits(tokens))
    if processes.is_first():
        # How far the logits of a denoiser that all load are from those of a process's own copy.
        result["published"] = float(np.abs(together - sdtt_jax.load(path).logits(tokens)).max())
        sys.stdout.write(json.dumps(result) + "\n")


def compile_once() -> None:
    """Lets process 0 compile for all, which spares each of the others a third of its CPU time.

    JAX has a setting for that. It names programs by their devices, which the processes of a CPU describe
    differently, so that here the machine takes the place of the devices. One process alone finds the programs
    of test_meshes.py under their own names.
    """
    if jax.process_count() > 1 and hasattr(cache_key, "_hash_accelerator_config"):
        cache_key._hash_accelerator_config = lambda name, *_: name.update(platform.node().encode())
        jax.config.update("jax_share_binary_between_hosts", True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
