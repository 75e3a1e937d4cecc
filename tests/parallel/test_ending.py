"""Ending together, with a dict as a job's table of keys and values. Oracle: what each process may do.

tests/faults/test_processes.py tests it with real processes.
"""

import os
import signal
import sys
import threading
import time

import jax
import pytest
from jax.experimental import multihost_utils

from sdtt_jax.errors import EXIT_INTERRUPTED, ConfigError, UserError
from sdtt_jax.parallel import ending, processes


class Client(dict):
    """The part of JAX's client that is used."""

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite
        self[key] = value

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.items() if key.startswith(folder)]

    def key_value_try_get(self, key):
        return self[key]


@pytest.fixture
def table(monkeypatch):
    """The table of a job of two processes; this is the first, and `ended` the statuses that it ended with."""
    jax.devices()  # this looks for a real client
    client, state = Client(), ending.distributed.global_state
    for name, value in (("client", client), ("num_processes", 2), ("process_id", 0)):
        monkeypatch.setattr(state, name, value)
    for name in ("LOOK", "GRACE", "PATIENCE"):
        monkeypatch.setattr(ending, name, 0.05)
    client.ended = []
    monkeypatch.setattr(os, "_exit", client.ended.append)
    return client


@pytest.mark.parametrize("joined", [False, True])
def test_one_that_is_alone_goes_its_own_way(monkeypatch, joined):
    """Also if it has joined a job of one."""
    if joined:
        monkeypatch.setattr(ending.distributed.global_state, "client", Client())
        monkeypatch.setattr(ending.distributed.global_state, "num_processes", 1)
    assert ending.is_alone()
    assert ending.failed_elsewhere() is None
    ending.fail(1)
    with ending.interruptible():
        pass


def test_one_that_fails_says_so_and_the_first_waits_for_the_others_to_read_it(table, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python leaves it where the file was closed
    began = time.monotonic()
    ending.fail(2)
    assert table == {f"{ending.FAILED}0": "2"}
    assert table.ended == [2]
    assert time.monotonic() - began >= 0.05
    monkeypatch.setattr(ending, "PATIENCE", 30.0)
    table[f"{ending.FAILED}1"] = "1"
    ending.fail(1)
    assert table.ended == [2, 1]
    assert time.monotonic() - began < 30


def test_of_several_that_failed_the_lowest_number_is_named(table):
    """Keys are text, in whose order 10 comes before 2. It names none but others."""
    table |= {f"{ending.FAILED}{number}": str(number) for number in (10, 2, 0)}
    message, status = ending.failed_elsewhere()
    assert message.startswith("Process 2 has failed")
    assert status == 2


def listen(table):
    over = threading.Event()
    thread = threading.Thread(target=ending._listen, args=(table, over))
    thread.start()
    return over, thread


def test_one_that_hears_of_a_failure_ends_with_the_same_status(table, capsys):
    table |= {f"{ending.FAILED}3": "1", f"{ending.FAILED}1": "2"}
    _, thread = listen(table)
    deadline = time.monotonic() + 30
    while not table.ended:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert table.ended == [2]
    assert capsys.readouterr().err == (
        "Error: Process 1 has failed, and its output says why; this one ends with it.\n"
    )
    thread.join()  # it has reported its own end, and looks no more


@pytest.mark.usefixtures("table")
def test_work_goes_on_while_nothing_ends_it():
    """And its end leaves SIGINT to whom it belonged."""
    before = signal.getsignal(signal.SIGINT)
    with ending.interruptible():
        time.sleep(5 * ending.LOOK)
    assert signal.getsignal(signal.SIGINT) is before


def test_one_that_ends_by_itself_is_left_to_it(table, monkeypatch, capsys):
    """It ends within the time that it is given once the other's failure is known."""
    monkeypatch.setattr(ending, "GRACE", 600.0)
    looked, read = threading.Event(), table.key_value_dir_get
    monkeypatch.setattr(
        table, "key_value_dir_get", lambda folder: (looked.set(), read(folder))[1], raising=False
    )
    table[f"{ending.FAILED}1"] = "2"
    over, thread = listen(table)
    assert looked.wait(60)
    over.set()
    thread.join()
    assert table.ended == []
    assert capsys.readouterr().err == ""


def until_interrupted():
    for _ in range(3000):
        time.sleep(0.01)
    return "too late"


@pytest.mark.parametrize(
    ("raised", "told"),
    [(KeyboardInterrupt, KeyboardInterrupt), (ConfigError, ConfigError), (OSError, UserError)],
)
def test_what_ends_the_work_of_the_first_process_alone_ends_all(table, monkeypatch, raised, told):
    """SIGTERM to any process, which JAX announces in the table, or an error of the work."""
    sent = []
    monkeypatch.setattr(
        multihost_utils, "broadcast_one_to_all", lambda value: sent.append(value) or sent[0]
    )
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def work():
        if raised is not KeyboardInterrupt:
            raise raised
        table[ending.NOTICE] = "now"
        for _ in range(3000):
            time.sleep(0.01)

    with pytest.raises(raised):
        processes.on_first("Working", work)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    with pytest.raises(told):
        processes.on_first("Working", work)


def test_a_signal_is_heard_while_waiting_for_the_others(table, monkeypatch, capsys):
    """JAX waits in C++; if it did so in the main thread, no handler would run."""
    joined = threading.Event()
    main = threading.main_thread().ident

    def initialize(**_):
        time.sleep(0.1)  # by then the main thread is most likely waiting
        signal.pthread_kill(main, signal.SIGINT)
        joined.wait(30)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(ending, "listen", lambda: None)
    # Where these tests run in the background of a script, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        processes.initialize("on")
    finally:
        signal.signal(signal.SIGINT, before)
    joined.set()
    assert table.ended == [EXIT_INTERRUPTED]
    assert "Stopped while waiting for the other processes." in capsys.readouterr().err
