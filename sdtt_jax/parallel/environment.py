"""Environment variables for the processes of a job, virtual devices and XLA's compiler; this needs no JAX."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping

# Set by `launch.local`, and by hand on a cluster that JAX does not recognise.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# The port of process 0, where JAX makes the address from a cluster's variables; and the ports that it takes.
PORT, LEAST_PORT, PORTS = "JAX_COORDINATOR_PORT", 61440, 4096

DEVICE_COUNT = "--xla_force_host_platform_device_count"
# By default XLA has one thread for each virtual device, but a device waits in several collectives at once
# where two loops are independent of each other. When all threads wait, the work that they wait for never
# starts, and after a minute XLA ends the process. Training a coupled round on eight devices ended like this
# within 1,000 steps in three of three runs, and with eight threads for each device in none of three.
THREADS = "PJRT_NPROC"
THREADS_PER_DEVICE = 8
# How hard LLVM works on XLA's programs for a CPU, of 0 to 3. At 2 the five training steps of the demo have
# the same speed and the same bits as at 3, XLA's default, and compile in 17.7 s instead of 22 on two cores.
# (At 1 they do, too, but for GPUs XLA warns below 2. At 0 they are three times slower.)
EFFORT, LEVEL = "--xla_backend_optimization_level", 2


def virtual_devices(count: int) -> dict[str, str]:
    """The environment variables of a process that computes on `count` virtual devices of the CPU."""
    xla_flags = [
        f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(DEVICE_COUNT)
    ]
    found = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(count),  # goes before the flag, if the user has set it
        "XLA_FLAGS": " ".join([*xla_flags, f"{DEVICE_COUNT}={count}"]),
    }
    return found | threads_to_wait_in(os.environ | found)


def threads_to_wait_in(environ: Mapping[str, str]) -> dict[str, str]:
    """The variable that sets the threads, if `environ` asks for several virtual devices and lacks it."""
    flags = [f for f in environ.get("XLA_FLAGS", "").split() if f.startswith(DEVICE_COUNT)]
    # JAX's own variable goes before XLA's flag.
    count = environ.get("JAX_NUM_CPU_DEVICES") or "".join(flags[-1:]).partition("=")[2]
    if THREADS in environ or not count.isdecimal() or int(count) < 2:
        return {}
    return {THREADS: str(THREADS_PER_DEVICE * int(count))}


def compiled_sooner(environ: Mapping[str, str]) -> dict[str, str]:
    """The variable that sets `EFFORT` for processes on a CPU, unless `environ` sets it."""
    given = environ.get("XLA_FLAGS", "")
    platforms = environ.get("JAX_PLATFORMS") or (None if has_accelerators() else "cpu")
    if platforms != "cpu" or EFFORT in given:
        return {}
    return {"XLA_FLAGS": f"{given} {EFFORT}={LEVEL}".strip()}


def has_accelerators() -> bool:
    """Whether JAX's support of an accelerator is installed; looks for none, which would take seconds."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def port_of_step(environ: Mapping[str, str]) -> dict[str, str]:
    """The variable that gives each step of a SLURM job a port of its own, unless `environ` has one.

    JAX makes the port from the job alone, so that of two steps that run at once one would end the other.
    """
    job, step = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_STEP_ID", "")
    if PORT in environ or not (job.isdecimal() and step.isdecimal()):
        return {}
    return {PORT: str(LEAST_PORT + (int(job) + 257 * int(step)) % PORTS)}
