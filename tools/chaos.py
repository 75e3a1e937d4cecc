"""Kills a run at random moments, again and again, and checks that the results show no trace of it.

  python -m tools.chaos --directory=runs/chaos --kills=25 --seed=0

The run is first made once undisturbed, unless --unbroken names such a run. Then it is made again,
killed with SIGKILL at random moments and restarted with the same command; if it reaches its end
before all kills are used up, another run is begun. Every run's parameters (teacher, judge, rounds),
metrics, texts and results must equal those of the undisturbed run, bit for bit, except for times.
Options after `--` go to `experiments.run`.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.cli.app import run_app, stopwatch
from sdtt_jax.checkpoints.digests import canonical_sha256, params_digest
from sdtt_jax.checkpoints.store import load_params
from sdtt_jax.errors import ConfigError, UserError
from sdtt_jax.formats import read_json
from sdtt_jax.paths import as_path
from sdtt_jax.training.metrics import read_metrics

_CONFIG = flags.DEFINE_string("config", "experiments/configs/smoke.py", "Config of the run.")
_DIRECTORY = flags.DEFINE_string("directory", None, "Where the runs go; must be empty or missing.")
_UNBROKEN = flags.DEFINE_string(
    "unbroken",
    None,
    "A finished run of the same config and options, to compare with instead of making one. The output "
    "of DIR is read from DIR.log beside it.",
)
_KILLS = flags.DEFINE_integer("kills", 25, "Number of kills.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the times of the kills.")

# The most seconds between a line and the kill that follows it, and the seconds between two looks: a round
# of smoke.py takes one second.
JITTER, LOOK = 0.3, 0.01
# Fields of results.json and metrics.jsonl that say how long something took.
TIMES = ("timing", "seconds", "tokens_per_second", "data_wait")


def outcome(root: Path) -> dict[str, str]:
    """Digests of a finished run: of the parameters in each folder `final`, and of each file of results."""
    digests = {
        str(folder.relative_to(root)): params_digest(load_params(folder)[0])
        for folder in sorted(root.glob("**/final"))
    }
    contents: dict[str, Any] = {
        name: read_json(root / name) for name in ("results.json", "samples.json")
    }
    contents["metrics.jsonl"] = read_metrics(root / "metrics.jsonl")
    for name, content in contents.items():
        digests[name] = canonical_sha256(_timeless(content))
    return digests


def _timeless(content: Any) -> Any:
    if isinstance(content, list):
        return [_timeless(item) for item in content]
    if isinstance(content, dict):
        return {key: value for key, value in content.items() if key not in TIMES}
    return content


class RestartedRun:
    """A run in a directory that is restarted until it reaches its end."""

    def __init__(self, directory: Path, config: str, options: Sequence[str]):
        self.directory = directory
        flags = f"--config={config}", f"--workdir={directory}"
        self._command = [sys.executable, "-m", "experiments.run", *flags, *options]

    @contextlib.contextmanager
    def started(self) -> Iterator["subprocess.Popen[str]"]:
        """The same command, started again; if it has not ended with the block, it is killed.

        Its output is appended to a file next to the directory. It has a session of its own, so Ctrl-C in the
        terminal does not reach it.
        """
        with self.log_file.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                self._command, stdout=log, stderr=log, text=True, start_new_session=True
            )
        try:
            yield process
        finally:
            kill(process)

    @property
    def log_file(self) -> Path:
        return self.directory.with_name(f"{self.directory.name}.log")

    def lines(self) -> int:
        """Its progress: the number of lines of output, over all starts, and of metrics."""
        metrics = self.directory / "metrics.jsonl"
        return len(self._output()) + (metrics.read_bytes().count(b"\n") if metrics.exists() else 0)

    def where(self) -> str:
        """The last line that it wrote, shortened, and the last step in its metrics."""
        last = (self._output() or ["no output yet"])[-1].strip()[:60]
        path = self.directory / "metrics.jsonl"
        metrics = read_metrics(path) if path.exists() else []
        return last + "".join(f" ({m['stage']} {m['round']} @ {m['step']})" for m in metrics[-1:])

    def _output(self) -> list[str]:
        if not self.log_file.exists():
            return []
        return self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()


def kill(process: "subprocess.Popen[str]") -> None:
    """Kills a process and those that it started, unless it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finish(run: RestartedRun, process: "subprocess.Popen[str]") -> None:
    """Waits for the process, which must succeed."""
    status = process.wait()
    if status != 0:
        raise UserError(f"A run ended with status {status}; see {run.log_file}.")


def disturb(
    run: RestartedRun, moments: random.Random, lines: int, kills: int, log: Callable[[str], None]
) -> int:
    """Takes a run to its end, killing it on the way; returns the number of kills that it took.

    A kill comes after so many more lines, and then seconds, as `moments` draws. A run writes `lines` from its
    beginning to its end; seconds would not do: with the compilation cache full, or on a busier machine, it
    takes quite another time than the first. There are at most `kills`.
    """
    for number in range(kills):
        start = run.lines()
        with run.started() as process:
            wanted, delay = start + moments.randrange(lines), moments.uniform(0, JITTER)
            while process.poll() is None and run.lines() < wanted:
                time.sleep(LOOK)
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                kill(process)
                log(f"  killed {delay:.1f} s after: {run.where()}")
            else:
                finish(run, process)
                return number
    with run.started() as process:
        finish(run, process)
    return kills


def main(argv: Sequence[str]) -> None:
    """Runs, kills, compares."""
    if _DIRECTORY.value is None:
        raise ConfigError("--directory is missing; see --help.")
    directory = as_path(_DIRECTORY.value)
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty; give another --directory.")
    directory.mkdir(parents=True, exist_ok=True)
    log, moments = stopwatch(), random.Random(_SEED.value)

    def run_in(folder: Path) -> RestartedRun:
        return RestartedRun(folder, _CONFIG.value, argv[1:])

    unbroken = run_in(as_path(_UNBROKEN.value or directory / "unbroken"))
    if _UNBROKEN.value is None:
        log("the undisturbed run")
        with unbroken.started() as process:
            finish(unbroken, process)
    lines, expected = unbroken.lines(), outcome(unbroken.directory)
    log(f"done; {_KILLS.value} kills to come, seed {_SEED.value}")
    killed = runs = 0
    while killed < _KILLS.value:
        run, runs = run_in(directory / f"killed_{runs + 1:02d}"), runs + 1
        kills = disturb(run, moments, lines, _KILLS.value - killed, log)
        killed += kills
        actual = outcome(run.directory)
        if actual != expected:
            names = sorted(n for n in expected | actual if actual.get(n) != expected.get(n))
            raise UserError(
                f"{run.directory}, killed {kills} times, differs from {unbroken.directory} in "
                f"{', '.join(names)}."
            )
        log(f"run {runs}, killed {kills} times: the same bits in all {len(expected)} results")
    log(f"{killed} kills in {runs} runs: everything is the same, bit for bit")


if __name__ == "__main__":
    run_app(main, cache=False)
