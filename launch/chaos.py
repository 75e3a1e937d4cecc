"""Kills a run at random moments, again and again, and checks that nothing of it shows in the results.

  python -m launch.chaos --directory=/tmp/chaos --kills=25 --seed=0

First the run is made once without a disturbance. Then it is made again, killed with SIGKILL at random moments
and started anew with the same command; when it reaches its end before all kills are spent, another one is begun.
Every run's parameters (teacher, judge, rounds), metrics, texts and results must be those of the first, bit for bit,
times excepted. What follows `--` goes to `experiments.run`.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.terminal import EXIT_CONFIG, EXIT_FAILED, stopwatch
from sdtt_jax.training.checkpoint import load_params, params_digest
from sdtt_jax.training.metrics import read_metrics

_CONFIG = flags.DEFINE_string("config", "experiments/configs/smoke.py", "Config of the run.")
_DIRECTORY = flags.DEFINE_string("directory", None, "Where the runs go; must be empty or missing.")
_KILLS = flags.DEFINE_integer("kills", 25, "How often a run is killed.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments, as shares of the first run's duration.")

# What says how long something took, in results.json and in the lines of metrics.jsonl.
TIMES = ("timing", "seconds", "tokens_per_second")


def outcome(root: Path) -> dict[str, str]:
    """Digests of everything that a run has found out, by what it is.

    Args:
      root: of a finished run.

    Returns:
      The folder of each `final` -> digest of its parameters; each file of results -> that of its content.
    """
    found = {
        str(folder.relative_to(root)): params_digest(load_params(folder)[0])
        for folder in sorted(root.glob("**/final"))
    }
    contents: dict[str, Any] = {
        name: json.loads((root / name).read_text(encoding="utf-8"))
        for name in ("results.json", "samples.json")
    }
    contents["metrics.jsonl"] = read_metrics(root / "metrics.jsonl")
    for name, content in contents.items():
        text = json.dumps(_timeless(content), sort_keys=True)
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _timeless(content: Any) -> Any:
    if isinstance(content, list):
        return [_timeless(item) for item in content]
    if isinstance(content, dict):
        return {key: value for key, value in content.items() if key not in TIMES}
    return content


class Run:
    """A run in a directory, started as often as it takes."""

    def __init__(self, directory: Path, config: str, options: Sequence[str]):
        self.directory = directory
        self._command = [
            sys.executable,
            "-m",
            "experiments.run",
            f"--config={config}",
            f"--workdir={directory}",
            *options,
        ]

    def start(self) -> "subprocess.Popen[str]":
        """The same command, once more; its output goes to a file beside the directory."""
        with self.log.open("a", encoding="utf-8") as log:
            return subprocess.Popen(
                self._command, stdout=log, stderr=log, text=True, start_new_session=True
            )

    @property
    def log(self) -> Path:
        return self.directory.with_suffix(".log")

    def where(self) -> str:
        """The last line that it wrote, stripped to what fits a line."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip()[:60] if lines else "nothing said yet"


def finish(run: Run, process: "subprocess.Popen[str]") -> None:
    """Waits for the end; anything but success is a failure of the promise."""
    status = process.wait()
    if status != 0:
        raise RuntimeError(f"a run ended with status {status}; see {run.log}")


def compare(run: Run, expected: dict[str, str]) -> list[str]:
    """What of a finished run differs from the undisturbed one."""
    found = outcome(run.directory)
    return sorted(name for name in expected | found if found.get(name) != expected.get(name))


def main(argv: Sequence[str]) -> int:
    """Runs, kills, compares; 0 if all results are the same."""
    if _DIRECTORY.value is None:
        sys.stderr.write("Error: --directory is missing; see --help.\n")
        return EXIT_CONFIG
    directory = Path(_DIRECTORY.value)
    if directory.exists() and any(directory.iterdir()):
        sys.stderr.write(f"Error: {directory} is not empty; give another --directory.\n")
        return EXIT_CONFIG
    directory.mkdir(parents=True, exist_ok=True)
    say, moments = stopwatch(), random.Random(_SEED.value)

    def make(name: str) -> Run:
        return Run(directory / name, _CONFIG.value, argv[1:])

    try:
        run = make("unbroken")
        say("the run that nothing disturbs")
        began = time.monotonic()
        finish(run, run.start())
        duration = time.monotonic() - began
        expected = outcome(run.directory)
        say(f"done in {duration:.0f} s; {_KILLS.value} kills, seed {_SEED.value}")
        killed = runs = 0
        while killed < _KILLS.value or runs == 0:
            runs += 1
            run = make(f"killed_{runs:02d}")
            here = 0
            while killed < _KILLS.value:
                process = run.start()
                delay = moments.uniform(0, duration)
                try:
                    process.wait(delay)
                    break
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                killed, here = killed + 1, here + 1
                say(f"kill {killed} after {delay:.1f} s: {run.where()}")
            else:
                process = run.start()
            finish(run, process)
            different = compare(run, expected)
            if different:
                say(f"run {runs} with {here} kills DIFFERS in {', '.join(different)}")
                return EXIT_FAILED
            say(f"run {runs} with {here} kills: the same bits in all {len(expected)} results")
    except RuntimeError as error:
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_FAILED
    say(
        f"{killed} kills in {runs} runs: parameters, metrics, texts and results are the same, bit for bit"
    )
    return 0


if __name__ == "__main__":
    app.run(main)
