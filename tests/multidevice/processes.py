"""`programs.run` by several processes together, under `launch.local`; process 0 prints JSON.

python -m launch.local --processes=2 --devices_per_process=4 -- tests.multidevice.processes DIRECTORY [FROM]
"""

import json
import sys
from pathlib import Path

import jax

from sdtt_jax import processes


def main(directory: Path, restore_from: Path | None) -> None:
    processes.initialize()
    # Its module-level schedule computes, which must come after the processes have met.
    from tests.multidevice import programs

    result = programs.run(programs.BRIEF, directory, restore_from, brief=True)
    result["processes"] = jax.process_count()
    if processes.is_first():
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
