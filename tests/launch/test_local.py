"""Several processes on this machine. Oracle: programs that say who they are, fail or wait to be asked."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.local import command_line, describe, environment, without_noise

ROOT = Path(__file__).parent.parent.parent

WAITER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("asked", flush=True), sys.exit(75)))
print("ready", flush=True)
time.sleep(60)
"""
FAILS_ONCE = """
import os, sys, time
if os.environ["JAX_PROCESS_ID"] == "1":
    sys.exit(3)
time.sleep(60)
"""


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.local", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def call(*arguments: str) -> tuple[int, str]:
    process = start(*arguments)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_modules_run_by_this_python_and_commands_as_they_are():
    assert command_line(["experiments.run", "--x"]) == [
        sys.executable,
        "-m",
        "experiments.run",
        "--x",
    ]
    assert command_line(["python", "-c", "1"]) == [sys.executable, "-c", "1"]
    assert command_line(["/bin/echo", "a.b"]) == ["/bin/echo", "a.b"]
    assert command_line(["nvidia-smi"]) == ["nvidia-smi"]


def test_each_process_is_told_who_it_is(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_force_host_platform_device_count=3")
    first, second = (environment(index, 2, 4, 1234) for index in (0, 1))
    assert first["JAX_COORDINATOR_ADDRESS"] == second["JAX_COORDINATOR_ADDRESS"] == "127.0.0.1:1234"
    assert (first["JAX_PROCESS_ID"], second["JAX_PROCESS_ID"]) == ("0", "1")
    assert first["JAX_NUM_PROCESSES"] == "2"
    assert first["XLA_FLAGS"] == "--xla_a=1 --xla_force_host_platform_device_count=4"


def test_output_is_prefixed_with_the_number_of_the_process():
    status, output = call("--processes=3", "--", "python", "-c", "print('hello')")
    assert status == 0
    assert sorted(output.splitlines()) == ["[0] hello", "[1] hello", "[2] hello"]


def test_what_gloo_says_is_left_out_however_its_threads_mix_it():
    """An empty line is either the end of one of gloo's lines or the program's own."""
    said = (
        "[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1"
    )
    start, end = said[:30], said[30:]
    written = f"mine\n\n{said}\n{said}{said}\n\n{start}{said}\n{end}\nyours\n\nours\n"
    lines = [line.strip() for line in without_noise(written.splitlines(keepends=True))]
    assert lines == ["mine", "", "yours", "", "ours"]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_gloo_in_any_order_leave_only_what_the_program_printed(seed):
    """Four threads write the pieces of their lines; whole lines of the program fall between them."""
    draw = random.Random(seed)
    phrases = ["is connected to ", "3", " peer ranks. "]
    expected = ["Expected number of connected peer ranks is : ", "3", "\n"]
    threads = [["[Gloo] Rank ", f"{i} ", *phrases, *expected] for i in range(4)]
    mine = [f"step {i}\n" for i in range(3)]
    written = ["3 of mine before\n"]
    while any(threads):
        if mine and not written[-1].strip().isdigit() and draw.random() < 0.2:
            written.append(mine.pop(0))
        written.append(draw.choice([t for t in threads if t]).pop(0))
    written += [*mine, "3\n"]
    lines = [line.strip() for line in without_noise("".join(written).splitlines(keepends=True))]
    assert lines == ["3 of mine before", "step 0", "step 1", "step 2", "3"]


def test_when_one_fails_the_others_are_ended_and_its_status_is_that_of_all():
    began = time.monotonic()
    status, output = call("--processes=3", "--", "python", "-c", FAILS_ONCE)
    assert status == 3
    assert "process 1 ended with exit status 3; stopping the others" in output
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_all_of_them_to_save_and_stop(number):
    process = start("--processes=2", "--", "python", "-c", WAITER)
    lines = [process.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert len(re.findall("asked", output)) == 2


def test_what_a_script_runs_is_asked_too_and_waited_for(tmp_path):
    """The script ended at once and left its program behind, unasked. Oracle: what that program prints."""
    slow = WAITER.replace('print("asked", flush=True)', 'time.sleep(1), print("saved", flush=True)')
    (tmp_path / "program.py").write_text(slow)
    (tmp_path / "script.sh").write_text(f"{sys.executable} {tmp_path}/program.py\nexit $?\n")
    process = start("--processes=2", "--", "sh", f"{tmp_path}/script.sh")
    lines = [process.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert len(re.findall("saved", output)) == 2


def test_what_a_script_runs_is_killed_after_the_grace_period(tmp_path):
    (tmp_path / "script.sh").write_text(
        f"{sys.executable} -c '{WAITER}'\nexit $?\n".replace("sys.exit(75)", "0")
    )
    process = start("--processes=1", "--grace_seconds=1", "--", "sh", f"{tmp_path}/script.sh")
    assert process.stdout.readline() == "[0] ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)  # ends when nothing holds the pipe
    assert "killing the processes" in output
    assert time.monotonic() - began < 5


def test_no_process_outlives_a_launcher_that_is_killed():
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    process = start("--processes=1", "--", "python", "-c", program)
    pid = int(process.stdout.readline().split()[1])
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_wrong_flag_is_one_line_and_help_is_no_failure():
    said = "Error: flag --processes=0: 0 is not a positive integer (see --help)\n"
    assert call("--processes=0", "--", "python") == (2, said)
    assert call("--help")[0] == 0


def test_nothing_to_run_is_an_error_in_the_command():
    status, output = call("--processes=2")
    assert status == 2
    assert "nothing to run" in output
    status, output = call("--", "/no/such/program")
    assert status == 2
    assert "cannot run /no/such/program" in output


def test_statuses_in_words():
    assert describe(3) == "exit status 3"
    assert describe(-9) == "signal SIGKILL"
