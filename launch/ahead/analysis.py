"""What a compiled program costs: whether it fits, how fast it can be, and what limits it."""

import math
import re
import time
from typing import Any

from jax.sharding import Mesh

from launch.ahead import hlo
from launch.ahead.programs import Program
from launch.ahead.topologies import Topology

Record = dict[str, Any]
# The TPU compiler's two messages for a program that is too large.
_NEEDED = (
    re.compile(r"Used ([\d.]+)([MG]) of [\d.]+[MG]"),
    re.compile(r"temporaries \(([\d.]+)([MG])\) exceeds"),
)
_UNIT = {"M": 2**20, "G": 2**30}


def analyse(program: Program, topology: Topology, mesh: Mesh) -> Record:
    """Compiles a program, counts what it does and predicts its time.

    Returns every figure that is printed and written, JSON-ready: bytes, FLOPs and seconds of one chip and one
    run, and `fits`, whether the program fits in the chip's memory.
    """
    began = time.perf_counter()
    record: Record = {
        "program": program.kind,
        "topology": str(topology),
        "mesh": dict(mesh.shape),
        "chips": topology.chips,
        "batch_per_chip": program.batch / topology.chips,
        "state_bytes": program.state,
        "usable_bytes": topology.chip.usable,
    }
    try:
        compiled = program.lower().compile()
    except Exception as error:
        size = next(filter(None, (form.search(str(error)) for form in _NEEDED)), None)
        if size is None:
            raise
        seconds = time.perf_counter() - began
        needed = float(size[1]) * _UNIT[size[2]]
        return record | {"fits": False, "peak_bytes": needed, "compile_seconds": seconds}
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    cost = hlo.Module(
        compiled.as_text(),
        tuple(mesh.shape),
        tuple(mesh.shape.values()),
        program.trips_of,
        topology.slices,
    ).cost()
    expected = program.flops + program.recomputed
    record |= {
        "fits": peak <= topology.chip.usable,
        "compile_seconds": seconds,
        "peak_bytes": peak,
        "arguments_bytes": memory.argument_size_in_bytes,
        "temporaries_bytes": memory.temp_size_in_bytes,
        "flops": {
            "counted": cost.flops,
            "unavoidable": program.flops,
            "recomputed": program.recomputed,
            "counted_over_expected": cost.flops / expected,
        },
        # Memory traffic depends on fusions, so a program of another compiler says nothing about it.
        "memory_traffic_bytes": None if topology.stand_in else cost.bytes,
        "memory_traffic_by_operation": None if topology.stand_in else cost.traffic,
        "collectives": _collectives(cost, topology),
    }
    record["predicted"] = predict(record, program, topology)
    return record


def predict(record: Record, program: Program, topology: Topology) -> Record:
    """Seconds of one run from the roofline: each resource at its published peak.

    `seconds` lets computing, memory and network overlap perfectly, so it is a lower bound;
    `seconds_without_overlap` lets nothing overlap. Both leave out memory traffic where it is not known.
    """
    chip = topology.chip
    compute = record["flops"]["counted"] / chip.flops
    traffic = record["memory_traffic_bytes"]
    names = {
        "compute": compute,
        "network": sum(entry["seconds"] for entry in record["collectives"]),
    }
    if traffic is not None:
        names["memory"] = traffic / chip.bandwidth
    seconds = max(names.values())
    return {
        "compute_seconds": compute,
        "memory_seconds": names.get("memory"),
        "network_seconds": names["network"],
        "seconds": seconds,
        "seconds_without_overlap": sum(names.values()),
        "bound_by": max(names, key=lambda name: names[name]),
        "tokens_per_second": program.tokens / seconds,
        "share_of_peak": program.flops / chip.flops / seconds,
    }


def _collectives(cost: hlo.Cost, topology: Topology) -> list[Record]:
    return [
        {
            "kind": what.kind,
            "axes": list(what.axes),
            "devices": what.group,
            "calls": cost.count[what],
            "bytes": cost.data[what],
            "sent_bytes": sent,
            "seconds": sent / bandwidth(topology, what),
        }
        for what, sent in sorted(cost.sent.items(), key=lambda item: -item[1])
    ]


def bandwidth(topology: Topology, what: hlo.Collective) -> float:
    """Bytes/s that a chip sends within a group: one ring for each dimension of the torus that it spans.

    An exchange of which any group or pair leaves its slice, or its node of GPUs, is as fast as the
    data-centre network, however few devices take part.
    """
    chip = topology.chip
    if hlo.SLICES in what.axes:
        return chip.between
    side = max(topology.sides)
    spanned = math.ceil(math.log(what.group, side) - 1e-9) if side > 1 else 1
    return chip.network * min(chip.torus, max(1, spanned)) / chip.torus
