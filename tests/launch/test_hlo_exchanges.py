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


@pytest.mark.parametrize(
    ("partitions", "groups", "axes"),
    [
        (32, "[16,2]<=[2,16]T(1,0)", ("data",)),
        (32, "[2,16]<=[32]", ("fsdp", "slices")),
        # The TPU compiler's program of one slice: its mesh is 2 × 4.
        (8, "{{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
        (8, "{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        (8, "{{0,1,2,3,4,5,6,7}}", ("data", "fsdp")),
    ],
)
def test_slices_that_fsdp_crosses_are_no_blocks_of_the_devices_of_a_mesh(partitions, groups, axes):
    """Four slices do not divide data=2, so each has four devices of both rows: 0 to 3 and 16 to 19 …"""
    text = EXCHANGE.format(kind="all-reduce", groups=f"replica_groups={groups}")
    text = text.replace("HloModule m", f"HloModule m, num_partitions={partitions}, x={{}}")
    found = Module(text, ("data", "fsdp"), (2, 16), lambda _: 1.0, slices=4).cost()
    assert [what.axes for what in found.sent] == [axes]


TRANSFER = """HloModule m

%wrapped (q: f32[1024]) -> f32[256] {{
  %q = f32[1024]{{0}} parameter(0)
  ROOT %s = f32[256]{{0}} reduce-scatter(%q), replica_groups=[1,4]<=[4], dimensions={{0}}, to_apply=%add
}}

ENTRY %main (p: f32[1024], on_chip: f32[1024]) -> f32[1024] {{
  %p = f32[1024]{{0}} parameter(0)
  %on_chip = f32[1024]{{0:S(1)}} parameter(1)
  %go = token[] after-all()
{body}
}}
"""
PAIRS, GROUPS = "source_target_pairs={{0,1},{1,0}}", "replica_groups=[1,4]<=[4], dimensions={0}"
BUFFER, GATHERED = "f32[1024]{0}", "f32[4096]{0}"


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        (f"ROOT %r = {BUFFER} collective-permute(%p), {PAIRS}", 2048),
        (
            f"%s = ({BUFFER}, {BUFFER}, u32[], u32[]) collective-permute-start(%p), {PAIRS}\n"
            f"ROOT %r = {BUFFER} collective-permute-done(%s)",
            2048,
        ),
        (f"ROOT %r = {GATHERED} all-gather(%p), {GROUPS}", 1024 + 4096),
        (
            f"%s = ({BUFFER}, {GATHERED}) all-gather-start(%p), {GROUPS}\n"
            f"ROOT %r = {GATHERED} all-gather-done(%s)",
            1024 + 4096,
        ),
        # Two gathers in one, one of them from and to the chip's own memory, which costs nothing.
        (
            "%s = ((f32[1024]{0}, f32[1024]{0:S(1)}), (f32[4096]{0}, f32[4096]{0:S(1)})) "
            f"all-gather-start(%p, %on_chip), {GROUPS}\n"
            "ROOT %r = (f32[4096]{0}, f32[4096]{0:S(1)}) all-gather-done(%s)",
            1024 + 4096,
        ),
        (
            f"%s = {BUFFER} all-reduce-start(%p), {GROUPS}, to_apply=%add\n"
            f"ROOT %r = {BUFFER} all-reduce-done(%s)",
            2048,
        ),
        # What the computation that it calls moves, and no more.
        (
            f"%s = (({BUFFER}), f32[256]{{0}}, u32[]) async-start(%p), calls=%wrapped\n"
            f"%u = (({BUFFER}), f32[256]{{0}}, u32[]) async-update(%s)\n"
            "ROOT %r = f32[256]{0} async-done(%u)",
            1024 + 256,
        ),
        # One reading of what is sent, one writing of what comes.
        (
            f"%s = ({BUFFER}, u32[], token[]) send(%p, %go), channel_id=1\n"
            "%sent = token[] send-done(%s)\n"
            f"%v = ({BUFFER}, u32[], token[]) recv(%go), channel_id=2\n"
            f"ROOT %r = ({BUFFER}, token[]) recv-done(%v)",
            2048,
        ),
    ],
    ids=lambda value: value.split("ROOT")[0][:60] if isinstance(value, str) else None,
)
def test_a_transfer_reads_and_writes_each_array_once_in_one_piece_or_in_two(body, numbers):
    """The first part of an asynchronous one returns (operands, results, contexts); none is moved twice."""
    text = TRANSFER.format(body="\n".join(f"  {line}" for line in body.split("\n")))
    assert Module(text, ("data",), (4,), lambda _: 1.0).cost().bytes == 4 * numbers
