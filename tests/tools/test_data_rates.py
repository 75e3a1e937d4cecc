"""Measurements of the data preparation, at sizes that take seconds. Oracle: the size of mapped memory."""

import mmap
import re

import numpy as np
import pytest

from sdtt_jax.errors import ConfigError
from tools import data_rates


@pytest.mark.parametrize(
    ("arguments", "cells"),
    [
        (["rate", "--megabytes=0.3", "--repeats=2"], r"[\d.]+ \| [\d.]+ \| \d+% \| \d+% to \d+%"),
        (["memory", "--megabytes", "0.3", "--words", "--workers=1"], r"0\.3 \| \d\d \| \d+"),
        (["index", "--records=20000", "--reads=200"], r"20,000 \| [\d.]+ \| \d+ \| [\d.]+"),
    ],
)
def test_each_part_prints_its_row(arguments, cells, capsys):
    data_rates.main(arguments)
    assert re.search(rf"^\| {cells} \|$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rate", "--megabytes=0"], "--megabytes must be positive, not 0.0"),
        (["rate", "--repeats=0"], "--repeats must be positive, not 0"),
        (["memory", "--megabytes", "1", "-2"], "--megabytes must be positive, not -2.0"),
        (["index", "--reads=0"], "--reads must be positive, not 0"),
        (["index", "--records=50"], "--records=50 must be a multiple of 100, .* nearest is 100"),
        (["index", "--records=170"], "--records=170 must be a multiple of 100, .* nearest is 200"),
    ],
)
def test_sizes_that_cannot_be_are_named(arguments, said):
    with pytest.raises(ConfigError, match=said):
        data_rates.main(arguments)


def test_another_process_that_shares_its_libraries_takes_nothing_off(tmp_path, monkeypatch):
    """Other processes began between the two measurements, so each page that they share counts for less."""
    shares = iter([140.0, 139.6])
    monkeypatch.setattr(data_rates, "_share_of_memory", lambda _: next(shares))
    assert data_rates.random_access(tmp_path, records=1000, reads=2)[1] == 0.0


def test_the_share_of_memory_is_what_is_held():
    """The median of five: a process that shares libraries moves a share by 40 MB when it begins or ends.

    Memory of `mmap` is given back when it is closed. A NumPy array's is kept once a test of this process has
    called `keep_freed_memory`: the second array took the pages of the first, so that nothing more was held.
    """
    more = []
    for _ in range(5):
        before = data_rates._share_of_memory(data_rates.os.getpid())
        with mmap.mmap(-1, 400_000_000) as held:
            np.frombuffer(held, np.uint8).fill(1)
            more.append(data_rates._share_of_memory(data_rates.os.getpid()) - before)
    assert np.median(more) == pytest.approx(400, rel=0.2)
