"""Eight virtual CPU devices in processes of their own. Oracle: the same computation on one device."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.multidevice, pytest.mark.slow]

# With a model axis the head's columns are split too: log-sum-exp and draws cross devices.
MESHES = {"data": (8, 1, 1), "data, fsdp and model": (2, 2, 2)}


def run(devices: int, mesh: tuple[int, int, int]) -> dict:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "tests.distillation.eight_devices", *map(str, mesh)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def alone():
    return run(1, (1, 1, 1))


@pytest.mark.parametrize("mesh", MESHES)
def test_losses_gradients_and_texts_are_those_of_one_device(alone, mesh):
    """The number of devices in a mesh changes neither what is learned nor a single token drawn."""
    several = run(8, MESHES[mesh])
    _, fsdp, model = MESHES[mesh]
    assert several.pop("head shard") == [32 // fsdp, 256 // model]
    assert several.pop("texts") == alone["texts"]
    for name, value in several.items():
        assert value == pytest.approx(alone[name], rel=1e-4, abs=1e-7), name
