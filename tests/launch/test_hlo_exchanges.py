"""What exchanges between devices cost. Oracle: the slices of the devices, and bytes, both counted by hand."""

import pytest

from launch.ahead.analysis import bandwidth
from launch.ahead.hlo import Module
from launch.ahead.topologies import parse_topology

EXCHANGE = """HloModule m

ENTRY %main (p0: f32[100]) -> f32[100] {{
  %p0 = f32[100]{{0}} parameter(0)
  ROOT %r = f32[100]{{0}} {kind}(%p0), channel_id=1, {groups}, use_global_device_ids=true, to_apply=%add
}}
"""


@pytest.mark.parametrize(
    ("sizes", "kind", "groups", "axes", "gigabytes"),
    [
        # Eight pairs, each of two nodes: what sums the gradients of the mesh 2 × 8.
        ((2, 8), "all-reduce", "[8,2]<=[2,8]T(1,0)", ("data", "slices"), 50),
        ((2, 8), "all-gather", "[2,8]<=[16]", ("fsdp",), 450),
        # Groups of four: two devices of each node, or all on one node.
        ((4, 4), "all-reduce", "[4,4]<=[4,4]T(1,0)", ("data", "slices"), 50),
        ((4, 4), "all-gather", "[4,4]<=[16]", ("fsdp",), 450),
        ((16, 1), "all-reduce", "[1,16]<=[16]", ("data", "slices"), 50),
        # Only the last of the groups leaves its node, and only one pair of the permutation.
        ((8, 2), "all-reduce", "{{0,2},{4,6},{1,15}}", ("data", "slices"), 50),
        ((16, 1), "collective-permute", "{{0,1},{1,2},{7,8}}", ("data", "slices"), 50),
        ((16, 1), "collective-permute", "{{0,1},{8,9}}", ("data",), 450),
    ],
)
def test_a_group_that_leaves_its_node_is_as_fast_as_the_network_between_nodes(
    sizes, kind, groups, axes, gigabytes
):
    """Two nodes of eight H100s: devices 0 to 7 and 8 to 15; 450 GB/s inside of a node, 50 GB/s between."""
    name = "source_target_pairs" if kind == "collective-permute" else "replica_groups"
    text = EXCHANGE.format(kind=kind, groups=f"{name}={groups}")
    topology = parse_topology("h100:8", slices=2)
    found = Module(text, ("data", "fsdp"), sizes, lambda _: 1.0, topology.slices).cost()
    (what,) = found.sent
    assert what.axes == axes
    assert bandwidth(topology, what) == gigabytes * 1e9
