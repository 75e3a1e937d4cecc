"""Runs one part in a process of its own: python -m tools.accelerator.worker FILE, a JSON job."""

import importlib
import sys
import time

from sdtt_jax.formats import read_json
from sdtt_jax.paths import as_path
from tools.accelerator import PARTS
from tools.accelerator.bench import Bench


def run(part: str, bench: Bench) -> None:
    """Runs a part to its end, or to its first error outside a single row."""
    module = importlib.import_module(f"tools.accelerator.{PARTS[part].module}")
    getattr(module, part)(bench)
    bench.save()


def main() -> None:
    """Runs the part that the file names."""
    job = read_json(sys.argv[1])
    until, file, folder = time.monotonic() + job["seconds"], as_path(job["file"]), job["folder"]
    run(job["part"], Bench(until, job["earlier"], file, as_path(folder), job["tiny"]))


if __name__ == "__main__":
    main()
