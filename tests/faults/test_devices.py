"""Faults of single devices and changes of the mesh. Oracles: one device, and the arrays before the fault."""

import itertools

import pytest

from tests.faults.devices import MESHES
from tests.multidevice.launching import printed_by
from tests.sharing import once

pytestmark = [pytest.mark.slow, pytest.mark.multidevice]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The output of the program that runs all of these faults on eight virtual devices."""

    def run(folder):
        return printed_by("tests.faults.devices", str(folder / "steps"))

    return once(tmp_path_factory, "faults_of_devices", run)[1]


@pytest.mark.fault(
    row=18,
    fault="a NaN in the gradient of one device's examples",
    promise="all devices reject the update: parameters, optimizer and average keep their bits; counted",
)
def test_row_18_nan_on_one_device(results):
    found = results["nan"]
    assert found["changed"] == ["rejected", "rejected_in_a_row", "step"]
    assert found["rejected"] == 1
    assert found["rejected by devices"] == [1.0]
    assert found["differing"] == {}
    assert (found["next"], found["rejected after"]) == (0.0, 1)


@pytest.mark.fault(
    row=21,
    fault="resumed on other meshes: 8 devices, 8 along other axes, 4, 2 and 1",
    promise="restored bit for bit; then equal to one device's training to rounding",
)
def test_row_21_other_meshes(results):
    found = results["meshes"]
    assert [tuple(each["mesh"]) for each in found] == list(MESHES)
    for before, after in itertools.pairwise(found):
        assert after["restored"] == before["digest"]
    assert [each["step"] for each in found] == [2, 4, 6, 8, 10]
    # Ten steps of Adam at rate 0.01 move a parameter by up to 0.1; float32 sums in another order by 1e-6
    # or so, which Adam's division by small second moments enlarges.
    assert max(each["error"] for each in found) < 2e-3


@pytest.mark.fault(
    row=29,
    fault="silent data corruption: a bit of one device's copy of a parameter flips",
    promise="found by the check every N steps, and before a save; stops, naming the array and the device",
)
def test_row_29_silent_data_corruption(results):
    found = results["corrupted"]
    assert found["sound"] == {}
    for path in ("blocks/norm1/scale", "head/linear/kernel"):
        [(named, devices)] = found[path].items()
        assert named == f"params/{path}"
        assert len(devices) == 1
    assert "silent data corruption" in found["error"]
