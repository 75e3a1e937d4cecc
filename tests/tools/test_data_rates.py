"""The measurements of the preparation, at a size of seconds. Oracles: what a process of NumPy must hold."""

import re

import numpy as np
import pytest

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


def test_the_share_of_memory_is_what_is_held():
    before = data_rates._share_of_memory(data_rates.os.getpid())
    # Much more than what moves when another process that shares this one's libraries ends (40 MB).
    held = np.ones(400_000_000, np.uint8)
    more = data_rates._share_of_memory(data_rates.os.getpid()) - before
    assert more == pytest.approx(held.nbytes / 1e6, rel=0.2)
