"""A thread beside a block of code. Oracle: what it did, and whether it lives."""

import threading

import pytest

from sdtt_jax.threads import running


@pytest.mark.parametrize("fails", [False, True])
def test_it_runs_within_and_has_ended_after(fails):
    over, began, ended = threading.Event(), threading.Event(), threading.Event()

    def work():
        began.set()
        over.wait()
        ended.set()

    try:
        with running("worker", over, work):
            assert began.wait(10)
            assert not ended.is_set()
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert ended.is_set()
    assert "worker" not in {thread.name for thread in threading.enumerate()}
