"""Who holds a bucket. Oracle: the messages and the object, which here is a file on a disk."""

import os
import threading

import pytest

from experiments.stages import lease as module
from experiments.stages.lease import lease
from sdtt_jax.errors import UserError


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(module, "RENEW", 0.2)


def test_a_second_owner_is_refused_while_the_first_lives(tmp_path):
    with (
        lease(tmp_path, "process 1"),
        pytest.raises(UserError, match=r"in use by another run \(process 1\)"),
    ):
        lease(tmp_path, "process 2").__enter__()
    assert list(tmp_path.iterdir()) == []
    with lease(tmp_path, "process 3"):
        pass


def test_a_dead_owner_is_followed(tmp_path):
    (tmp_path / ".lease.json").write_text('{"token": "x", "owner": "process 1", "renewed": 4}')
    with lease(tmp_path, "process 2"):
        assert "process 2" in (tmp_path / ".lease.json").read_text()


def test_an_owner_that_slept_too_long_is_stopped(tmp_path, monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(os, "kill", lambda *_: asked.set())
    with lease(tmp_path, "process 1"):
        (tmp_path / ".lease.json").write_text('{"token": "y", "owner": "process 2"}')
        assert asked.wait(10)
    assert "process 2" in (tmp_path / ".lease.json").read_text()


class HttpError(Exception):
    """No OSError, as `gcsfs.retry.HttpError` is none."""


def test_an_owner_goes_on_renewing_after_an_error_of_the_bucket(tmp_path, monkeypatch, caplog):
    """Oracle: the numbers of the renewals, and a second owner, who is refused."""
    write, tried, later = module._write, [], threading.Event()

    def failing(path, token, owner, count):
        tried.append(count)
        if count == 2:
            raise HttpError("503 backend error")
        write(path, token, owner, count)
        if count == 4:
            later.set()

    monkeypatch.setattr(module, "_write", failing)
    with lease(tmp_path, "process 1"):
        assert later.wait(10)
        with pytest.raises(UserError, match=r"in use by another run \(process 1\)"):
            lease(tmp_path, "process 2").__enter__()
    assert tried[:5] == [0, 1, 2, 3, 4]
    assert "503 backend error" in caplog.text


def test_a_bucket_that_fails_at_the_end_does_not_hide_how_the_run_ended(
    tmp_path, monkeypatch, caplog
):
    def failing(_path):
        raise HttpError("503 backend error")

    def run():
        with lease(tmp_path, "process 1"):
            monkeypatch.setattr(module, "_read", failing)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert "the next run waits until it has expired" in caplog.text
