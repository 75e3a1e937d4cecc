"""What virtual devices of the CPU need, and its compiler. Oracle: what XLA reads."""

import os
import subprocess
import sys

from sdtt_jax.parallel import environment
from sdtt_jax.parallel.environment import (
    compiled_sooner,
    port_of_step,
    threads_to_wait_in,
    virtual_devices,
)


def test_several_devices_of_a_process_have_threads_to_wait_in(monkeypatch):
    """With fewer threads they deadlock, rarely: a device waits in a collective of each concurrent loop."""
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    assert virtual_devices(8)["PJRT_NPROC"] == "64"
    assert "PJRT_NPROC" not in virtual_devices(1)
    monkeypatch.setenv("PJRT_NPROC", "100")
    assert "PJRT_NPROC" not in virtual_devices(8)


def test_a_command_gives_them_where_its_flags_ask_for_several_devices():
    flag = "--xla_force_host_platform_device_count="
    assert threads_to_wait_in({"XLA_FLAGS": f"--xla_a {flag}8 {flag}4"}) == {"PJRT_NPROC": "32"}
    own = {"JAX_NUM_CPU_DEVICES": "2"}  # JAX's own, which goes before the flag
    assert threads_to_wait_in({"XLA_FLAGS": f"{flag}8"} | own) == {"PJRT_NPROC": "16"}
    for flags in ("", f"{flag}1", f"{flag}many", flag):
        assert threads_to_wait_in({"XLA_FLAGS": flags}) == {}


def test_the_number_that_is_asked_for_goes_before_that_of_the_users_shell(monkeypatch):
    """Each process of launch.local had the 4 of JAX_NUM_CPU_DEVICES, whatever --devices_per_process said.

    Oracle: JAX, which reads its own variable before XLA's flag.
    """
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    found = os.environ | virtual_devices(2)
    counting = [sys.executable, "-c", "import jax; print(jax.device_count())"]
    assert subprocess.run(counting, env=found, check=True, capture_output=True).stdout == b"2\n"


def test_a_cpu_compiles_with_less_effort_unless_told_otherwise(monkeypatch):
    """Oracle: XLA, which ends a program with a flag that it does not know."""
    sooner = {"XLA_FLAGS": "--xla_a --xla_backend_optimization_level=2"}
    own = {"XLA_FLAGS": "--xla_backend_optimization_level=3"}
    for accelerators in (False, True):
        monkeypatch.setattr(environment, "has_accelerators", lambda found=accelerators: found)
        assert compiled_sooner({"XLA_FLAGS": "--xla_a", "JAX_PLATFORMS": "cpu"}) == sooner
        assert compiled_sooner({"XLA_FLAGS": "--xla_a"}) == ({} if accelerators else sooner)
        assert not any(map(compiled_sooner, (own, {"JAX_PLATFORMS": "cuda"})))
    found = os.environ | compiled_sooner(virtual_devices(1))
    computing = [sys.executable, "-c", "import jax; print(jax.jit(lambda x: x + 1)(1))"]
    assert subprocess.run(computing, env=found, check=True, capture_output=True).stdout == b"2\n"


def test_steps_of_a_slurm_job_meet_at_different_ports():
    """The first at JAX's own, 61440 + job % 4096; "--pty" and sbatch scripts have steps of large numbers."""

    def port(**environ):
        return port_of_step(environ).get("JAX_COORDINATOR_PORT")

    steps = "0", "1", "2", "4294967290", "4294967294"
    ports = [port(SLURM_JOB_ID="12345", SLURM_STEP_ID=step) for step in steps]
    assert ports[0] == str(61440 + 12345 % 4096)
    assert len(set(ports)) == len(steps)
    assert all(61440 <= int(found) < 65536 for found in ports)
    assert port(SLURM_JOB_ID="1", SLURM_STEP_ID="2", JAX_COORDINATOR_PORT="3") is None
    assert port(SLURM_JOB_ID="1") is port() is None
