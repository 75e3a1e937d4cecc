"""The watchdog of a process. Oracle: how the process ends. tests/faults tests it in a run of several."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import sys, time
from sdtt_jax.training.watchdog import watchdog

with watchdog(4.0, "a step") as beat:
    print("ready", flush=True)
    for _ in range(3):
        beat()
        for _ in range(14 if sys.argv[1] == "works" else 0):
            time.sleep(0.05)  # a stop shortens at most one of them
    time.sleep(0 if sys.argv[1] == "works" else 300)
"""


def start(what: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_a_process_that_was_stopped_goes_on():
    """Ctrl-Z for longer than a step may take: such a process used to be ended on waking up."""
    process = start("works")
    process.send_signal(signal.SIGSTOP)
    time.sleep(5.5)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_with_the_stacks_of_its_threads():
    process = start("hangs")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a step has not finished within 4 s" in said
    assert "File " in said
