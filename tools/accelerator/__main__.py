"""Measures one accelerator in one go, and writes one JSON and one page of Markdown.

  python -m tools.accelerator --minutes=20 --output=DIR

Parts, the most useful first:

  machine   its kind and versions; the rates that a bare matmul and a bare copy reach
  kernels   attention, fused head, losses, digests, draws: equal to those on the CPU; the speed of
            attention
  training  steps of teacher and distillation, small size, at the batches that fit: tokens/s and MFU
  race      the student at 8, 16 and 32 calls against the causal model with its cache
  sampling  tokens/s and latency of the small size, from one text at once to many
  profile   one traced step of each kind: the operations that take the time
  saving    a training state to disk and back
  medium    as training, medium size
  tuning    the small size's step again under other settings

Each part has its share of the time; time that a part does not use is shared by the later ones. A
part that fails is recorded with its error, and one for which no time is left with a sentence that
says so; the others continue. One chip is measured, however many there are. Everything also runs on
a CPU, slowly; with the sizes of --tiny it takes two minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarking.worker import child_environment
from experiments.cli.app import output_file, run_script, stopwatch
from sdtt_jax.config import choose, positive, require
from sdtt_jax.formats import read_json, write_json
from sdtt_jax.paths import as_path, write_text
from tools.accelerator import PARTS
from tools.accelerator.page import page

# A part looks at its clock between measurements; one that does not end is killed this long after its time.
GRACE_S = 40.0
LEAST_S = 5.0


def environment(name: str, earlier: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a part: nearly all of the device's memory, and compiled programs kept."""
    flags, platform = os.environ.get("XLA_FLAGS", ""), earlier.get("machine", {}).get("platform")
    if name == "profile" and platform == "gpu":
        # A trace does not say which operations the kernels of a CUDA graph belong to.
        flags += " --xla_gpu_enable_command_buffer="
    kept = as_path(tempfile.gettempdir()) / "sdtt_jax_accelerator"
    inherited = child_environment(
        XLA_PYTHON_CLIENT_MEM_FRACTION="0.93",
        JAX_COMPILATION_CACHE_DIR=str(kept),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.2",
    )
    # Where libtpu is installed but there is no TPU, its profiler ends the process by a segmentation fault,
    # unless JAX is told to leave it alone.
    alone = {"JAX_PLATFORMS": platform} if platform == "cpu" else {}
    return inherited | {"XLA_FLAGS": flags.strip()} | alone


def run_process(command: Sequence[str], seconds: float, env: Mapping[str, str]) -> str | None:
    """Runs a part's process for at most `seconds`, and passes its stderr through.

    Returns None if it succeeds, else how it ended, with the end of what it wrote to stderr.
    """
    said: deque[str] = deque(maxlen=12)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, errors="replace", env=env
    ) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line)
                sys.stderr.write(line)
                sys.stderr.flush()
            process.wait()
            in_time = timer.is_alive()
        finally:
            timer.cancel()
            process.kill()
    if process.returncode == 0:
        return None
    if not in_time:
        return "did not finish in its time and was killed."
    return f"ended with status {process.returncode}: {''.join(said).strip()[-1500:]}"


def measure(names: Sequence[str], minutes: float, folder: Path, *, tiny: bool) -> dict[str, Any]:
    """Runs the parts one after the other, and writes record and page into `folder` after each.

    `minutes` is the time for all of them; `tiny` takes sizes for a CPU.
    """
    log = stopwatch()
    until = time.monotonic() + 60 * minutes
    parts = [] if [*names] == [*PARTS] else [f"--parts={','.join(names)}"]
    flags = [f"--minutes={minutes:g}", *parts, *(["--tiny"] if tiny else [])]
    record: dict[str, Any] = {
        "command": f"python -m tools.accelerator {' '.join(flags)}",
        "tiny": tiny,
        "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "parts": {},
    }
    for number, name in enumerate(names):
        left = until - time.monotonic()
        # Time that earlier parts left over, or overran, is shared by all later ones.
        seconds = left * PARTS[name].share / sum(PARTS[later].share for later in names[number:])
        log(f"part {number + 1} of {len(names)}, {name}: {seconds:.0f} s of the {left:.0f} s left")
        record["parts"][name] = _part(name, seconds, record["parts"], folder, tiny=tiny)
        write_json(folder / "accelerator.json", record)
        write_text(folder / "accelerator.md", page(record))
    log(f"wrote {folder / 'accelerator.json'} and {folder / 'accelerator.md'}")
    return record


def _part(
    name: str, seconds: float, earlier: Mapping[str, Any], folder: Path, *, tiny: bool
) -> dict[str, Any]:
    if seconds < LEAST_S:
        return {"skipped": [f"{name} was left out: no time was left for it"]}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        job, file = (as_path(scratch) / f"{what}.json" for what in ("job", "record"))
        asked = {"part": name, "seconds": seconds, "earlier": earlier, "tiny": tiny}
        write_json(job, asked | {"file": str(file), "folder": str(folder)})
        command = [sys.executable, "-m", "tools.accelerator.worker", str(job)]
        error = run_process(command, seconds + GRACE_S, environment(name, earlier))
        record: dict[str, Any] = read_json(file) if file.exists() else {}
    record["seconds"] = time.monotonic() - began
    if error is not None:
        record["error"] = f"The process {error}"
    return record


def main(argv: Sequence[str]) -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(
        "tools.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="time for all parts together; default: 20"
    )
    parser.add_argument(
        "--output", required=True, help="folder to write accelerator.json and accelerator.md to"
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="parts to run, separated by commas; default: all"
    )
    parser.add_argument("--tiny", action="store_true", help="use sizes for a CPU")
    arguments = parser.parse_args(argv[1:])
    positive(**{"--minutes": arguments.minutes})
    names = [name.strip() for name in arguments.parts.split(",") if name.strip()]
    require(len(names) > 0, f"--parts must name at least one of {', '.join(PARTS)}.")
    for name in names:
        choose("--parts", name, PARTS)
    file = output_file(str(as_path(arguments.output) / "accelerator.json"))
    assert file is not None
    names = sorted(set(names), key=list(PARTS).index)
    measure(names, arguments.minutes, file.parent, tiny=arguments.tiny)


if __name__ == "__main__":
    run_script(main)
