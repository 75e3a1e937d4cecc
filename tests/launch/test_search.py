"""Which batches and meshes are tried. Oracle: a formula for memory, tried for every batch."""

from importlib.util import find_spec
from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from experiments.configs.owt_small import owt
from launch.accelerators import CHIPS
from launch.ahead import search, topologies
from launch.ahead.search import (
    COMPILATIONS,
    LADDER,
    DoesNotFitError,
    Target,
    largest_batch,
    meshes,
    next_guess,
)
from launch.ahead.topologies import (
    Topology,
    describe_devices,
    mesh_of_devices,
    parse_topology,
)
from sdtt_jax.config import changed
from sdtt_jax.errors import ConfigError, UserError
from sdtt_jax.parallel.mesh import AXES, MeshConfig, check_batch_size


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
    ("microbatches", "model", "slope", "expected"),
    [
        (1, 1, 4.5, 8),
        (8, 1, 4.5, 8),  # not 12, which eight chips and eight microbatches do not divide
        (16, 1, 1.5, 32),  # the first guess is 16
        (3, 1, 4.5, 6),
        (5, 1, 1.0, 40),
        (16, 2, 4.5, 8),  # each sequence is on two chips
        (16, 1, 4.5, None),  # 16 sequences need 102 GB
        (512, 1, 0.01, 512),  # more than any batch of `LADDER`
    ],
)
def test_only_batches_are_tried_that_devices_and_microbatches_divide(
    monkeypatch, microbatches, model, slope, expected
):
    """Oracle: the check of a training step. Eight chips of 80 GB, 30 of which the state takes."""
    mesh = AbstractMesh((8 // model, 1, model), AXES, (AxisType.Auto,) * 3)
    train = {"microbatches": microbatches, "batch_size": 8 * microbatches}
    config = changed(owt("small"), distill={"train": train})

    def build(kind, config, mesh, batch, _):
        check_batch_size(batch, mesh, getattr(config, kind).train.microbatches)
        return batch // 8

    def analyse(batch, topology, _):
        peak = 30e9 + slope * 1e9 * batch
        fits = peak <= topology.chip.usable
        return {"batch": batch, "peak_bytes": peak, "state_bytes": {"": 30e9}, "fits": fits}

    monkeypatch.setattr(search, "build", build)
    monkeypatch.setattr(search, "analyse", analyse)
    target = Target("distill", config, parse_topology("h100:8"), ())
    found = largest_batch(target, mesh, lambda _: None, lambda: True)
    assert (found and found["batch"]) == expected
    if expected is None:
        monkeypatch.setattr(search, "meshes", lambda *_: [(mesh, {})])
        with pytest.raises(DoesNotFitError, match="16 sequences per chip, the fewest"):
            search.search(target, 1.0, lambda _: None)


def test_what_does_not_fit_is_told_from_a_config_that_is_wrong(monkeypatch):
    """Both are errors of the config, but only of the first may a table say that the slice is too small."""
    target = Target("distill", owt("small"), Topology(CHIPS["v5e"], (1, 1)), jax.devices()[:1])
    monkeypatch.setattr(search, "state_of", lambda *_: {"parameters": 1e12, "teacher": 0.0})
    with pytest.raises(
        DoesNotFitError, match=r"distill \(parameters\) does not fit .* larger slice"
    ):
        search.search(target, 1.0, lambda _: None)

    def wrong(*_):
        raise ConfigError("of another vocabulary")

    monkeypatch.setattr(search, "state_of", wrong)
    with pytest.raises(ConfigError, match="of another vocabulary"):
        search.search(target, 1.0, lambda _: None)


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


def test_nodes_of_gpus_that_no_batch_axis_is_a_multiple_of_are_refused():
    """As in the run itself, where JAX counts nodes as slices; these devices are of one process."""
    topology = parse_topology("h100:8", slices=2)
    with pytest.raises(ConfigError, match=r"2 slices, which divide neither mesh\.data=1 nor"):
        mesh_of_devices(MeshConfig(model=16), topology, jax.devices())


def test_every_chip_has_its_source():
    for chip in CHIPS.values():
        assert chip.source.startswith("https://")
        assert chip.flops > 1e14
        assert chip.memory > 1e10


def test_meshes_are_tried_from_the_one_that_communicates_least():
    """On one chip there is one mesh for a network whose state fits, and none for a larger one."""
    devices = jax.devices()
    one = Topology(CHIPS["v5e"], (1, 1))
    ((mesh, _),) = meshes("distill", owt("small"), one, devices[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "model": 1}
    assert list(meshes("distill", owt("large"), one, devices[:1])) == []


@pytest.mark.parametrize(
    ("kind", "copies"),
    [("distill", 5), ("teacher", 4), ("sample", 1), ("causal", 1), ("alpha", 4), ("idlm", 3.5)],
)
def test_the_state_that_must_fit_is_the_programs_own(kind, copies):
    """Oracle: arrays as large as the trained parameters, counted by hand.

    They, two moments, an average if there is one, and the teacher if the step asks one: of `idlm`, which
    trains two networks, half as large.
    """
    one, devices = Topology(CHIPS["v6e"], (1, 1)), jax.devices()[:1]
    ((_, state),) = meshes(kind, owt("small"), one, devices)
    assert sum(state.values()) == pytest.approx(copies * state["parameters"], rel=1e-6)


def test_a_sampler_fits_where_a_training_step_does_not():
    """A search for it was refused because of a teacher, an optimizer and an average that it does not have."""
    one, devices = Topology(CHIPS["v5e"], (1, 1)), jax.devices()[:1]
    assert list(meshes("distill", owt("large"), one, devices)) == []
    assert len(list(meshes("sample", owt("large"), one, devices))) == 1


@pytest.mark.parametrize("chip", [name for name, chip in CHIPS.items() if chip.kind == "tpu"])
def test_the_compiler_is_asked_for_one_device_per_chip(monkeypatch, chip):
    """A v4 was two devices, and every compilation for one ended in an AssertionError.

    Oracle: what libtpu 0.0.42 answers. Both cores of a v4 are a device only where it is asked for; a v5p
    takes this, too, and the chips of one core refuse it.
    """
    cores = CHIPS[chip].cores

    def libtpu(*, topology_name, chip_config_name="default", **_):
        assert chip_config_name == "default" or cores == 2
        two = topology_name.startswith("v4") and chip_config_name != "megacore"
        return SimpleNamespace(devices=["device"] * (2 if two else 1))

    monkeypatch.setattr(topologies.topologies, "get_topology_desc", libtpu)
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    one = Topology(CHIPS[chip], (1,) * CHIPS[chip].torus)
    assert describe_devices(one) == ["device"]


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="the TPU compiler is installed")
def test_without_the_tpu_compiler_the_error_says_what_to_install(monkeypatch):
    """It is no fault of the flags (status 2), but of the machine (1). Oracle: what pip would install."""
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    with pytest.raises(
        UserError, match=r"^Compiling for v5e:2x4 needs the TPU compiler.*\[tpu\]"
    ) as caught:
        describe_devices(parse_topology("v5e:2x4"))
    assert caught.type is UserError
