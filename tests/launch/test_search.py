"""Which batches and meshes are tried. Oracle: a formula for memory, tried for every batch."""

import jax
import pytest

from experiments.configs.owt_small import owt
from launch.accelerators import CHIPS
from launch.ahead.search import COMPILATIONS, LADDER, meshes, next_guess
from launch.ahead.topologies import Topology, parse_topology
from sdtt_jax.errors import ConfigError


@pytest.mark.parametrize("slope", [0.1, 0.3, 0.9, 1.7, 5.0, 14.9])
@pytest.mark.parametrize("bend", [0.0, 0.4])
def test_the_largest_batch_is_found_in_few_compilations(slope, bend):
    """Memory is 1 + bend sqrt(batch) + slope batch, on a chip of 16."""
    peaks: dict[int, float] = {}
    guess: int | None = 8
    while guess is not None:
        peaks[guess] = 1 + bend * guess**0.5 + slope * guess
        guess = next_guess(peaks, 1.0, 16.0)
    fitting = [b for b in LADDER if 1 + bend * b**0.5 + slope * b <= 16.0]
    assert max((b for b, p in peaks.items() if p <= 16.0), default=0) == max(fitting, default=0)
    assert len(peaks) <= COMPILATIONS + 1


def test_a_chip_too_small_for_one_sequence_ends_the_search():
    assert next_guess({1: 20.0}, 1.0, 16.0) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("v5e", "CHIP:SIDES"),
        ("v5e:16", "2 side"),
        ("v5p:4x4", "3 side"),
        ("v5x:4x4", "did you mean 'v5"),
        ("v5e:0x4", "2 side"),
        ("v5e:axb", "CHIP:SIDES"),
        ("v5e:100x100", "10000 chips, but the largest slice of v5e has 256"),
        ("v5p:3x3x3", "the nearest slice is v5p:4x4x3"),
        ("v5e:1x4", "the nearest slice is v5e:2x4"),
        ("h100:16", "--slices"),
    ],
)
def test_a_wrong_topology_is_one_line_that_says_what_to_change(name, fault):
    with pytest.raises(ConfigError, match=fault) as caught:
        parse_topology(name)
    assert "\n" not in str(caught.value)


def test_a_topology_counts_its_chips():
    assert parse_topology("v5e:16x16").chips == 256
    assert parse_topology("v5p:8x8x8").chips == 512
    assert parse_topology("v5e:4x4", slices=4).chips == 64
    assert str(parse_topology("v6e:2x4")) == "v6e:2x4"
    assert parse_topology("v5e:1x1").chips == 1
    assert parse_topology("h100:3").chips == 3


def test_every_chip_has_its_source():
    for chip in CHIPS.values():
        assert chip.source.startswith("https://")
        assert chip.flops > 1e14
        assert chip.memory > 1e10


def test_meshes_are_tried_from_the_one_that_communicates_least():
    """On one chip there is one mesh for a network whose state fits, and none for a larger one."""
    devices = jax.devices()
    one = Topology(CHIPS["v5e"], (1, 1))
    (mesh,) = meshes(owt("small"), one, devices[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "model": 1}
    assert list(meshes(owt("large"), one, devices[:1])) == []
