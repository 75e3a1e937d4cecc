"""Joint decisions, in one process; for several see tests/multidevice. Oracle: nothing changes."""

import re

import jax
import numpy as np
import pytest

from sdtt_jax.errors import ConfigError, UserError
from sdtt_jax.parallel import processes
from tests.parallel.threads import in_threads


def test_a_single_process_decides_for_itself():
    assert processes.is_first()
    assert processes.agree(value=True)
    assert not processes.agree(value=False)
    processes.barrier("alone")
    assert processes.on_first("Counting", lambda: 3) == 3


def test_what_fails_on_the_first_process_fails():
    def fail():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        processes.on_first("Failing", fail)


def test_arrays_come_to_the_host_whole():
    x = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(processes.to_host(jax.numpy.asarray(x)), x)


def test_off_and_auto_without_a_cluster_join_nothing(monkeypatch):
    called = []

    def initialize(**arguments):
        called.append(arguments)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    processes.initialize("off")
    assert not called
    processes.initialize("auto")
    assert len(called) == 1


SLURM = {"SLURM_JOB_ID": "1234", "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_RANK": "0"}


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        (SLURM | {"SLURM_PROCID": "0"}, "SLURM_NTASKS"),
        # In a shell of `salloc` (srun --interactive --preserve-env) commands waited for 7 others, in vain.
        (SLURM | {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, "SLURM_STEP_NUM_TASKS"),
        (OPEN_MPI, "OMPI_COMM_WORLD_SIZE"),
        # In a SLURM job, Open MPI starts its helpers as a step, and their processes inherit its variables.
        (OPEN_MPI | {"SLURM_STEP_NUM_TASKS": "1"}, "OMPI_COMM_WORLD_SIZE"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES"),
    ],
)
def test_auto_joins_no_job_of_one_process(monkeypatch, environment, count):
    """Its port would be that of every such command in the same allocation; each would end the others."""
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: called.append(given))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for mode, size, joins in (("auto", "1", 0), ("auto", "2", 1), ("on", "1", 2)):
        monkeypatch.setenv(count, size)
        processes.initialize(mode)
        assert len(called) == joins


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "node-1:", "node-1:http", "[::1]", "node-1:65536"]
)
def test_a_coordinator_without_a_port_is_named(monkeypatch, address):
    """JAX raises an IndexError, takes a part of the address for the port, or waits until the timeout."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_given: pytest.fail("joined"))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    said = rf"JAX_COORDINATOR_ADDRESS={re.escape(address)} has no port up to 65535; give HOST:PORT"
    with pytest.raises(ConfigError, match=said):
        processes.initialize()


def test_processes_of_an_open_mpi_that_jax_does_not_recognise_do_not_work_alone(monkeypatch):
    """Open MPI 5 sets no address. Each process did the whole work, on the same files."""
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: called.append(given))
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"Open MPI has started 2 processes.*JAX_NUM_PROCESSES"):
        processes.initialize()
    processes.initialize("off")
    assert not called
    for name, value in (("JAX_NUM_PROCESSES", "2"), ("JAX_PROCESS_ID", "1")):
        monkeypatch.setenv(name, value)
    processes.initialize()
    assert len(called) == 1


@pytest.mark.parametrize("environment", [{}, {"JAX_NUM_PROCESSES": "2"}])
def test_an_incomplete_environment_is_an_error_that_says_what_to_set(monkeypatch, environment):
    def initialize(**arguments):
        del arguments
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"JAX_COORDINATOR_ADDRESS=HOST:PORT.*--distributed=off"):
        processes.initialize("auto" if environment else "on")


def test_a_number_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES=two must be a number"):
        processes.initialize()


def test_processes_that_do_not_appear_are_reported_in_one_line(monkeypatch):
    def initialize(**arguments):
        raise RuntimeError(
            f"DEADLINE_EXCEEDED after {arguments['initialization_timeout']}\nlong story"
        )

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(UserError, match="Not all processes") as caught:
        processes.initialize(timeout=5)
    assert "\n" not in str(caught.value)


def test_facts_that_differ_between_processes_are_named_on_all_of_them(monkeypatch):
    """Threads stand in for the processes. Oracle: the message."""
    facts = {"seed": 0, "train": {"steps": 8, "rate": 0.1}}
    others = facts | {"seed": 7, "train": {"steps": 8, "rate": 0.25}}

    def check(facts):
        processes.require_same("The config", facts, "give the same one")

    assert in_threads(monkeypatch, *[lambda: check(facts)] * 3) == [None] * 3
    found = in_threads(monkeypatch, *(lambda f=f: check(f) for f in (facts, others, facts, others)))
    assert [type(error) for error in found] == [ConfigError] * 4
    said = (
        "The config of processes 1, 3 and of process 0 differ (seed: 0 -> 7, and 1 more); "
        "give the same one."
    )
    assert {str(error) for error in found} == {said}
    found = in_threads(monkeypatch, lambda: check(facts), lambda: check(facts | {"seed": 1}))
    assert re.search(
        r"of process 1 and of process 0 differ .*\(seed: 0 -> 1\); give", str(found[0])
    )
