"""Eight virtual CPU devices in processes of their own. Oracle: the same training on one device."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytestmark = [pytest.mark.multidevice, pytest.mark.slow]

MESHES = {
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "data, fsdp and model": (2, 2, 2),
}


def run(devices: int, mesh: tuple[int, int, int], directory) -> dict:
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    command = [
        sys.executable,
        "-m",
        "tests.training.eight_devices",
        *map(str, mesh),
        str(directory),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(1, (1, 1, 1), tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=MESHES)
def several(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("several")
    return MESHES[request.param], run(8, MESHES[request.param], directory), directory


def test_training_is_that_of_one_device_to_rounding(alone, several):
    _, result, _ = several
    np.testing.assert_allclose(result["losses"], alone["losses"], rtol=1e-4)
    np.testing.assert_allclose(result["sample"], alone["sample"], atol=2e-3)


def test_initial_parameters_do_not_depend_on_the_mesh(alone, several):
    """Digests agree bit for bit, and so does their computation over shards."""
    assert several[1]["initial"] == alone["initial"]


def test_everything_lies_where_the_rules_say(several):
    (data, fsdp, model), result, _ = several
    specs = result["specs"]
    expected = [None, "fsdp", "model"]
    assert specs["params/blocks/mlp/up/kernel"] == expected
    assert specs["ema_params/blocks/mlp/up/kernel"] == expected
    moments = [s for p, s in specs.items() if "opt_state" in p and p.endswith("mlp/up/kernel")]
    assert moments == [expected]
    assert result["batch_shard"] == [16 // (data * fsdp), 8]
    assert result["constraints"] > 0, (data, fsdp, model)


def test_a_checkpoint_restores_on_any_other_mesh_bit_for_bit(several):
    mesh, saved, directory = several
    other = (1, 1, 1) if mesh == (2, 2, 2) else (2, 1, 2)
    restored = run(int(np.prod(other)), other, directory)
    assert restored["digest"] == saved["digest"]
