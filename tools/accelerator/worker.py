"""One part in a process of its own: python -m tools.accelerator.worker PART SECONDS EARLIER RECORD FOLDER."""

import argparse
import importlib
import time
from pathlib import Path

from sdtt_jax.paths import read_json
from tools.accelerator import PARTS
from tools.accelerator.bench import Bench


def run(part: str, bench: Bench) -> None:
    """Runs a part to its end, or to its first error that is not a single row's."""
    module = importlib.import_module(f"tools.accelerator.{PARTS[part].module}")
    getattr(module, part)(bench)
    bench.save()


def main() -> None:
    """Runs the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("seconds", type=float)
    for name in ("earlier", "file", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    bench = Bench(
        until=time.monotonic() + arguments.seconds,
        earlier=read_json(arguments.earlier),
        file=arguments.file,
        folder=arguments.folder,
        tiny=arguments.tiny,
    )
    run(arguments.part, bench)


if __name__ == "__main__":
    main()
