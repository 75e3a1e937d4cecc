"""A training to be interrupted, by one process or by several.

python -m tests.faults.victim DIRECTORY [--option=VALUE …]

Every process writes to stdout a line "ready PID" when it has met the others, "step N" for every batch that it
makes, and at the end "digest D" of the parameters, or "stopped N" after a signal.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

from experiments.cli.app import exit_status
from sdtt_jax.errors import EXIT_INTERRUPTED, ConfigError
from sdtt_jax.parallel import processes
from sdtt_jax.training.loop import Interrupted


def main(arguments: argparse.Namespace) -> int:
    processes.initialize(timeout=arguments.join_timeout, heartbeat=arguments.heartbeat)
    # Importing it computes something, so the processes must have met before.
    from sdtt_jax.checkpoints.digests import params_digest
    from tests.training import tiny

    number = jax.process_index()
    print(f"ready {os.getpid()}", flush=True)

    def batch_at(step: int) -> np.ndarray:
        print(f"step {step}", flush=True)
        time.sleep(arguments.sleep)
        if (step, number) == (arguments.hang_at, jax.process_count() - 1):
            time.sleep(3600)
        if (step, number) == (arguments.fail_at, jax.process_count() - 1):
            raise ConfigError("This process cannot read its data.")
        return tiny.batch_at(step)

    try:
        state = tiny.run(
            arguments.directory,
            batch_at,
            save_every=arguments.save_every,
            ballast=arguments.ballast,
            watchdog_seconds=arguments.watchdog,
        )
    except Interrupted as stop:
        print(f"stopped {stop.step}", flush=True)
        return EXIT_INTERRUPTED
    print(f"digest {params_digest(state.params)}", flush=True)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--save_every", type=int, default=4)
    parser.add_argument("--ballast", type=int, default=0)
    parser.add_argument("--hang_at", type=int, default=-1)
    parser.add_argument("--fail_at", type=int, default=-1)
    parser.add_argument("--watchdog", type=float, default=0)
    parser.add_argument("--join_timeout", type=int, default=60)
    parser.add_argument("--heartbeat", type=int, default=100)
    sys.exit(exit_status(lambda _: sys.exit(main(parser.parse_args())), []))
