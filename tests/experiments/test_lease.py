"""Who holds a bucket. Oracle: the messages and the object, which here is a file on a disk."""

import os
import threading

import pytest

from experiments.stages.lease import lease
from sdtt_jax.errors import UserError


def test_a_second_owner_is_refused_while_the_first_lives(tmp_path):
    with (
        lease(tmp_path, "process 1", renew=0.2),
        pytest.raises(UserError, match=r"in use by another run \(process 1\)"),
    ):
        lease(tmp_path, "process 2", renew=0.2).__enter__()
    assert list(tmp_path.iterdir()) == []
    with lease(tmp_path, "process 3", renew=0.2):
        pass


def test_a_dead_owner_is_followed(tmp_path):
    (tmp_path / ".lease.json").write_text('{"token": "x", "owner": "process 1", "renewed": 4}')
    with lease(tmp_path, "process 2", renew=0.1):
        assert "process 2" in (tmp_path / ".lease.json").read_text()


def test_an_owner_that_slept_too_long_is_stopped(tmp_path, monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(os, "kill", lambda *_: asked.set())
    with lease(tmp_path, "process 1", renew=0.1):
        (tmp_path / ".lease.json").write_text('{"token": "y", "owner": "process 2"}')
        assert asked.wait(10)
    assert "process 2" in (tmp_path / ".lease.json").read_text()
