"""Threads that stand in for the processes of a job, in what they exchange."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from sdtt_jax.parallel import processes


def in_threads(monkeypatch: pytest.MonkeyPatch, *functions: Callable[[], Any]) -> list[Any]:
    """What each function returns or raises, when `processes.gathered` gathers from all of them."""
    barrier = threading.Barrier(len(functions), timeout=60)
    number, values = threading.local(), [np.empty(0)] * len(functions)

    def gathered(value: np.ndarray) -> np.ndarray:
        values[number.here] = value
        barrier.wait()
        found = np.stack(values)
        barrier.wait()
        return found

    def run(index: int, function: Callable[[], Any]) -> Any:
        number.here = index
        try:
            return function()
        except Exception as error:
            return error

    with monkeypatch.context() as patch, ThreadPoolExecutor(len(functions)) as pool:
        patch.setattr(processes, "gathered", gathered)
        return list(pool.map(run, range(len(functions)), functions))
