"""Meshes and placements as pure functions of configs, names and rules; several devices are abstract here.

What several devices compute is in tests/multidevice.
"""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel.mesh import (
    AXES,
    RULES,
    MeshConfig,
    abstract_mesh,
    check_batch_size,
    check_mesh,
    full_batch,
    hybrid_devices,
    make_mesh,
    slice_devices,
    use_mesh,
)
from sdtt_jax.parallel.placement import (
    mirror_shardings,
    partition_spec,
    place_batch,
    place_rows,
    place_whole,
    replicated,
    spread_shardings,
    tree_shardings,
    unbox,
)
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.state import StateSpec
from tests.training import toy

MESH = AbstractMesh((2, 2, 2), AXES, (AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    ("names", "spec"),
    [
        (("vocab", "embed"), PartitionSpec("model", "fsdp")),
        (("layers", "embed", "mlp"), PartitionSpec(None, "fsdp", "model")),
        (
            ("layers", "embed", None, "heads", "kv"),
            PartitionSpec(None, "fsdp", None, "model", None),
        ),
        # The batch has fsdp already, so the features of an activation stay whole.
        (("batch", "length", "embed"), PartitionSpec(("data", "fsdp"), None, None)),
    ],
)
def test_logical_names_become_mesh_axes(names, spec):
    assert partition_spec(names, RULES, MESH) == spec


def test_a_name_without_a_rule_is_named():
    with pytest.raises(ConfigError, match="'colour' has no rule"):
        partition_spec(("colour",), RULES, MESH)


def test_an_axis_that_does_not_divide_is_named_with_its_leaf():
    mesh = AbstractMesh((1, 1, 3), AXES, (AxisType.Auto,) * 3)
    boxed = jax.eval_shape(toy.init, jax.random.key(0))
    with pytest.raises(ConfigError, match=r"blocks/attn_out/kernel: its axis 'heads' of size 4"):
        tree_shardings(boxed, RULES, mesh)


def test_leaves_without_names_are_replicated():
    tree = {"w": jax.ShapeDtypeStruct((3,), np.float32)}
    assert tree_shardings(tree, RULES, MESH)["w"].spec == PartitionSpec()


def test_moments_average_and_teacher_lie_where_their_parameter_lies():
    boxed = jax.eval_shape(toy.init, jax.random.key(0))
    params, placement = unbox(boxed), tree_shardings(boxed, RULES, MESH)
    scalar = jax.ShapeDtypeStruct((), np.int32)
    tree = ({"count": scalar, "mu": params}, {"teacher": params, "dt": scalar})
    mirrored = mirror_shardings(tree, placement, params, MESH)
    assert mirrored[0]["mu"] == placement
    assert mirrored[1]["teacher"] == placement
    assert mirrored[0]["count"].spec == PartitionSpec()


def test_a_teacher_lies_where_the_student_and_the_fake_of_its_size_lie():
    boxed = jax.eval_shape(toy.init, jax.random.key(0))
    both, plain = {"student": boxed, "fake": boxed}, tree_shardings(boxed, RULES, MESH)
    params, placement = unbox(both), tree_shardings(both, RULES, MESH)
    tree = {"teacher_params": unbox(boxed), "mu": params}
    mirrored = mirror_shardings(tree, placement, params, MESH)
    assert mirrored == {"teacher_params": plain, "mu": placement}


def test_the_mesh_has_automatic_axes_over_all_devices():
    mesh = make_mesh(MeshConfig())
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "model": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_a_mesh_of_other_axes_is_refused_where_it_is_given():
    """What a user of JAX writes first. Oracle: the sentence, and that `make_mesh`'s own is taken."""
    one, auto = jax.devices()[:1], (AxisType.Auto,)
    others = (
        jax.make_mesh((1,), ("data",), auto, devices=one),
        jax.make_mesh((1, 1, 1), AXES, (AxisType.Explicit,) * 3, devices=one),
        None,
    )
    takes = (
        functools.partial(StateSpec, TrainConfig(1, 1)),
        lambda mesh: use_mesh(mesh).__enter__(),
        functools.partial(place_batch, np.zeros((2, 3), np.int32)),
    )
    for mesh, take in itertools.product(others, takes):
        with pytest.raises(ConfigError, match=r"axes data, fsdp, model of type Auto, not .* make_"):
            take(mesh)
    takes[0](make_mesh(MeshConfig()))
    with pytest.raises(ConfigError, match="mesh must be"):
        full_batch(3, others[0])


DEVICES = jax.devices() * 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": 3}, r"mesh.model=3 does not divide the 8 devices; the nearest .* is 2"),
        ({"fsdp": 4, "model": 4}, r"mesh.fsdp=4 times mesh.model=4 .* 8 devices; .* is 2"),
        ({"data": 3, "fsdp": 2}, r"mesh.data=3 .* is 6, but there are 8 devices; mesh.data=4 fits"),
    ],
)
def test_a_mesh_that_does_not_fit_says_what_would(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(MeshConfig(**fields), DEVICES)


@pytest.mark.parametrize("fields", [{"data": 0}, {"fsdp": 0}, {"model": -1}])
def test_a_size_that_is_none_is_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        MeshConfig(**fields)


def test_a_batch_that_does_not_divide_is_named():
    check_batch_size(16, MESH, microbatches=4)
    with pytest.raises(
        ConfigError, match=r"batch_size=18 .* 2 \* 2 \* 1; the nearest that can is 16"
    ):
        check_batch_size(18, MESH)
    with pytest.raises(ConfigError, match=r"distill.batch_size=8"):
        check_batch_size(8, MESH, microbatches=4, field="distill.batch_size")
    with pytest.raises(ConfigError, match="batch_size=3 cannot be split"):  # an error of JAX's
        place_batch({"tokens": np.zeros((3, 6))}, MESH)


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8, 16, 32, 64])
def test_an_axis_may_take_a_part_of_a_side_of_the_torus(fsdp):
    """8 × 8 chips other than v5e; the chips of a group are a rectangle."""
    places = [(x, y, 0) for y in range(8) for x in range(8)]
    devices = [FakeChip(i, place) for i, place in enumerate(places)]
    found = slice_devices((64 // fsdp, fsdp, 1), devices)
    assert {device.id for device in found.flat} == set(range(64))
    xs, ys, _ = zip(*(device.coords for device in found[0, :, 0]), strict=True)
    assert len(set(xs)) * len(set(ys)) == fsdp


def test_slices_are_crossed_by_one_batch_axis_alone():
    """Two slices of four: data crosses them if it can, else fsdp; the model axis never does."""
    devices = [FakeDevice(i, slice_index=i // 4) for i in range(8)]

    def slices(shape):
        return np.vectorize(lambda d: d.slice_index)(hybrid_devices(shape, 2, devices))

    crossing = slices((4, 1, 2))
    assert crossing.shape == (4, 1, 2)
    assert (crossing == crossing[:, :, :1]).all()
    np.testing.assert_array_equal(crossing[:, 0, 0], [0, 0, 1, 1])
    crossing = slices((1, 4, 2))
    np.testing.assert_array_equal(crossing[0, :, 0], [0, 0, 1, 1])


def test_slices_that_no_batch_axis_is_a_multiple_of_are_refused():
    devices = [FakeDevice(i, slice_index=i // 4) for i in range(8)]
    with pytest.raises(
        ConfigError, match=r"2 slices, which divide neither mesh\.data=1 nor mesh\.fsdp=1"
    ):
        hybrid_devices((1, 1, 8), 2, devices)
    with pytest.raises(ConfigError, match=r"2 slices, which divide neither"):
        abstract_mesh(MeshConfig(model=8), 8, slices=2)


def test_the_mesh_of_devices_that_do_not_exist():
    """Oracle: the product of the axes."""
    mesh = abstract_mesh(MeshConfig(fsdp=4, model=2), 1024, slices=4)
    assert dict(mesh.shape) == {"data": 128, "fsdp": 4, "model": 2}
    check_mesh(mesh)
    with pytest.raises(ConfigError, match=r"mesh\.data=3 times .* is 3, but there are 4 devices"):
        abstract_mesh(MeshConfig(data=3), 4)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """The fields of a device that JAX's helper reads."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


@dataclasses.dataclass(frozen=True)
class FakeChip:
    """The same fields of a v6e chip."""

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v6 lite"


def test_rows_are_placed_as_a_whole_batch_would_be():
    """Oracle: `place_batch`. In a job, each process would only make its own rows."""
    mesh = make_mesh(MeshConfig())
    batch = np.arange(24, dtype=np.int32).reshape(4, 6)
    placed = place_rows(lambda rows: batch[rows], batch.shape, mesh)
    whole = place_batch(batch, mesh)
    assert placed.sharding == whole.sharding
    np.testing.assert_array_equal(placed, whole)
    assert place_batch(placed, mesh) is placed


def test_a_batch_has_no_single_numbers():
    with pytest.raises(
        ConfigError, match=r"one of its leaves is the single number 0\.5; repeat it"
    ):
        place_batch({"tokens": np.zeros((4, 6)), "scale": 0.5}, make_mesh(MeshConfig()))


def test_keys_and_arrays_are_placed_whole():
    mesh = make_mesh(MeshConfig())
    tree = {"key": jax.random.key(3), "x": np.arange(3.0)}
    placed = place_whole(tree, mesh)
    assert placed["key"].sharding == replicated(mesh)
    assert (jax.random.key_data(placed["key"]) == jax.random.key_data(tree["key"])).all()
    np.testing.assert_array_equal(placed["x"], tree["x"])


def test_a_batch_is_filled_up_and_the_nearest_that_can_be_split_is_none_of_0():
    mesh = abstract_mesh(MeshConfig(), 4)
    assert [full_batch(size, mesh) for size in (1, 4, 5)] == [4, 4, 8]
    with pytest.raises(ConfigError, match=r"batch_size=1 .* nearest that can is 4"):
        check_batch_size(1, mesh)


def test_leaves_are_spread_along_their_longest_axis_that_can_be_split():
    """Oracle: sizes by hand on four devices; nothing is split where no axis is a multiple of four."""
    mesh = abstract_mesh(MeshConfig(), 4)
    shapes = {(8, 16): 1, (16, 8): 0, (6, 4): 1, (3, 5): None, (0, 4): 1, (): None}
    for shape, axis in shapes.items():
        spec = spread_shardings(jax.ShapeDtypeStruct(shape, np.float32), mesh).spec
        split = [place for place, names in enumerate(spec) if names]
        assert split == ([] if axis is None else [axis]), shape
