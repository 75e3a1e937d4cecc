"""A loaded model on a mesh. Oracle: the same model on one device."""

import json
import os
import subprocess
import sys

import pytest

from tests.multidevice.launching import ROOT
from tests.sharing import virtual_devices

pytestmark = [pytest.mark.multidevice, pytest.mark.slow]


def test_it_computes_and_writes_the_same_on_every_mesh(golden):
    """Logits and bounds to float32 rounding; tokens but for ties that rounding decides, at most 1 %."""
    environment = os.environ | virtual_devices(8)
    command = [sys.executable, "-m", "tests.multidevice.loaded", str(golden)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for record in json.loads(done.stdout.splitlines()[-1]):
        assert record["spread"] == 8, record
        assert record["states"], record
        assert record["differing"] <= 0.01, record
        assert max(record["logits"], record["score"], record["causal"]) < 2e-5, record
