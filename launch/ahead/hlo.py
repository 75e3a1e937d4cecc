"""FLOPs, memory traffic and collectives of a compiled program, from its text, with loops counted in full.

XLA's own cost analysis counts the body of a loop once, and blocks are scanned, so it would see one layer
of twelve. Here each computation's cost is multiplied by the trip count that the compiler wrote next to the
loop. For loops without one, which run as often as the data need, the caller gives the expected count.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from launch.ahead.hlo_text import Computation, Instruction, device_groups, parse
from sdtt_jax.networks.attention import packed_kernel
from sdtt_jax.parallel.mesh import crossing_axis

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all",
)  # fmt: skip
# Opcodes that move no bytes: names for parts of other arrays, and calls, whose computations are counted.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
    "after-all", "partition-id", "replica-id", "iota", "opt-barrier", "async-start", "async-update",
}  # fmt: skip
# Products of [length, length] of each kernel, and how many of query, key and value one operand packs.
ATTENTION_KERNELS = {
    "splash_mha_fwd": (2, 1),
    "splash_mha_dkv": (5, 1),
    packed_kernel.FORWARD: (2, 3),
    packed_kernel.BACKWARD: (5, 3),
}
_CHAIN = re.compile(r'chain_id="\d+"')
# Stands for an axis in exchanges between slices, or nodes of GPUs; no mesh has an axis of this name.
SLICES = "slices"
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# Opcodes that go by the name of their operand: copies between memories, and parts of results.
_COPIES = {
    "copy", "copy-start", "copy-done", "slice-start", "slice-done", "get-tuple-element", "bitcast",
}  # fmt: skip
# Opcodes that read no more of an operand than they return; `SLICES` are slices of chips.
_READ_IN_PART = {"dynamic-slice", "gather", "slice"}
# Opcodes that write in place, and which operand holds the new values.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
_INDEX = re.compile(r"\bindex=(\d+)")
_TRIPS = re.compile(r'known_trip_count":\s*{\s*"n":\s*"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange over one set of mesh axes."""

    kind: str  # opcode, "all-reduce" and so on
    # Mesh axes whose devices take part together, and `SLICES` if any of them lie on different slices.
    axes: tuple[str, ...]
    group: int  # devices that take part together


_Amounts = functools.partial(collections.defaultdict[Any, float], float)


@dataclasses.dataclass
class Cost:
    """What one device does.

    Attributes:
      flops: FLOPs of matrix products, convolutions and attention kernels.
      traffic: bytes read from and written to memory, by the source operation that they come from
        (`Instruction.source`); each operand and result of a fusion counts once.
      data: bytes that the device puts in, by collective.
      sent: bytes that the device sends, by collective, with the algorithms that send the fewest.
      count: how often each collective is called.
    """

    flops: float = 0.0
    traffic: dict[str, float] = dataclasses.field(default_factory=_Amounts)
    data: dict[Collective, float] = dataclasses.field(default_factory=_Amounts)
    sent: dict[Collective, float] = dataclasses.field(default_factory=_Amounts)
    count: dict[Collective, float] = dataclasses.field(default_factory=_Amounts)

    @property
    def bytes(self) -> float:
        """Bytes read from and written to memory."""
        return sum(self.traffic.values())

    def exchange(self, what: Collective, data: float, part: float = 1) -> None:
        """Adds a part of one exchange, into which the device puts `data` bytes in all."""
        size = what.group
        if size > 1:
            share = {
                "all-reduce": 2 * (size - 1) / size,
                "all-gather": size - 1,
                "collective-permute": 1,
            }.get(what.kind, (size - 1) / size)
            self.data[what] += data * part
            self.sent[what] += data * share * part
            self.count[what] += part

    def add(self, other: "Cost", times: float = 1) -> None:
        self.flops += other.flops * times
        for name in ("traffic", "data", "sent", "count"):
            mine = getattr(self, name)
            for key, value in getattr(other, name).items():
                mine[key] += value * times


class Module:
    """A compiled module.

    Args:
      text: `compiled.as_text()`.
      axes, sizes: the mesh, in the order of its devices.
      trips: the expected trips of a `while` whose count the compiler does not know.
      slices: slices that the mesh spans. The TPU compiler sends between them with instructions of its own.
    """

    def __init__(
        self,
        text: str,
        axes: Sequence[str],
        sizes: Sequence[int],
        trips: Callable[[Instruction], float],
        slices: int = 1,
    ):
        self.computations, self.entry = parse(text)
        self._slices, self._trips_of_loop = slices, trips
        crossing, inside = crossing_axis(tuple(sizes), slices), list(sizes)
        inside[crossing] //= slices
        # The TPU compiler makes a program of one slice, which counts its devices alone.
        if f"num_partitions={math.prod(inside)}," in text.partition("\n")[0]:
            sizes, slices = inside, 1
        self._axes, places = (*axes, SLICES), np.indices(sizes).reshape(len(sizes), -1)
        self._places = np.vstack([places, places[crossing] * slices // sizes[crossing]])
        self._chains = collections.Counter(
            match[0]
            for body in self.computations.values()
            for i in body.values()
            if (match := _CHAIN.search(i.attributes))
        )
        self._cost = functools.lru_cache(maxsize=None)(self._computation_cost)

    def cost(self) -> Cost:
        """The cost of one run of the whole program on one device."""
        return self._cost(self.entry, False)

    def _computation_cost(self, name: str, fused: bool) -> Cost:
        table, total = self.computations[name], Cost()
        for instruction in table.values():
            self._add(total, instruction, table, fused)
        return total

    def _add(self, total: Cost, i: Instruction, table: Computation, fused: bool) -> None:
        kind = i.opcode.removesuffix("-start")
        if i.opcode == "while":
            trips = self._trips(i)
            for body in i.called("body"):
                total.add(self._cost(body, False), trips)
        elif i.opcode == "conditional":
            names = i.called("branch_computations", "true_computation", "false_computation")
            costs = [self._cost(name, False) for name in names]
            total.add(max(costs, key=lambda cost: (cost.flops, cost.bytes)))
        elif i.opcode in ("call", "async-start"):
            for name in i.called("to_apply", "calls", "called_computation"):
                total.add(self._cost(name, False))
        elif kind in COLLECTIVES:
            self._add_collective(total, i, kind, table)
        elif i.opcode == "fusion":
            for name in i.called("calls"):
                inner = dataclasses.replace(self._cost(name, True), traffic={})
                total.add(_scattered(inner) if name.startswith("all-reduce-scatter") else inner)
        elif i.opcode == "send" and (between := _BETWEEN.search(i.attributes)):
            kind = between[1].lower().replace("_", "-")
            total.exchange(Collective(kind, (SLICES,), self._slices), i.shapes[0].bytes)
        elif i.opcode == "dot":
            total.flops += dot_flops(i, table)
        elif i.opcode == "convolution":
            total.flops += convolution_flops(i, table)
        elif i.opcode == "custom-call":
            total.flops += kernel_flops(i, table)
        if not fused and i.opcode not in FREE and not i.opcode.endswith("-done"):
            total.traffic[_operation(i, table)] += self._traffic(i, table)

    def _trips(self, loop: Instruction) -> float:
        if known := _TRIPS.search(loop.attributes):
            return float(known[1])
        # The TPU compiler writes no count, but its loops run from 0 while an index is below a constant.
        (name,) = loop.called("condition")
        condition = self.computations[name]
        root = _root(condition)
        operands = [condition[name] for name in root.operands]
        bounds = [float(operand.literal) for operand in operands if operand.opcode == "constant"]
        if root.opcode == "compare" and "direction=LT" in root.attributes and bounds:
            return math.ceil(bounds[0] / self._step(loop, operands[0]))
        return self._trips_of_loop(loop)

    def _step(self, loop: Instruction, index: Instruction) -> float:
        """What one trip adds to the index: 2 in an unrolled product whose operand the devices pass round."""
        (name,) = loop.called("body")
        body = self.computations[name]
        root = _root(body)
        place = _INDEX.search(index.attributes)
        added = body[root.operands[int(place[1])]] if place and root.opcode == "tuple" else root
        terms = [body[name] for name in added.operands if name in body]
        steps = [float(term.literal) for term in terms if term.opcode == "constant"]
        return steps[0] if added.opcode == "add" and steps else 1.0

    def _add_collective(self, total: Cost, i: Instruction, kind: str, table: Computation) -> None:
        groups = device_groups(i.attributes, self._places.shape[1])
        # Of all groups: one is as slow as its slowest link, and two devices may lie on two slices.
        axes = self._crossed(groups)
        size = 2 if kind == "collective-permute" else len(groups[0])
        data = sum(table[name].bytes for name in i.operands if name in table)
        # One exchange may be split over a chain of fusions that hides it.
        chain = _CHAIN.search(i.attributes)
        part = 1 / self._chains[chain[0]] if chain else 1.0
        total.exchange(Collective(kind, axes, size), data, part)

    def _crossed(self, groups: Iterable[np.ndarray]) -> tuple[str, ...]:
        crossed = set()
        for members in groups:
            varies = np.ptp(self._places[:, members], axis=1) > 0
            crossed |= {axis for axis, v in zip(self._axes, varies, strict=True) if v}
        return tuple(axis for axis in self._axes if axis in crossed)

    def _traffic(self, i: Instruction, table: Computation) -> float:
        """Bytes that an instruction reads and writes."""
        operands = [table[name] for name in i.operands if name in table]
        if i.opcode in _READ_IN_PART:
            return 2 * i.traffic
        if i.opcode in _UPDATES:
            return 2 * operands[_UPDATES[i.opcode]].traffic
        if i.opcode == "custom-call" and "AllocateBuffer" in i.attributes:
            return 0.0  # a scan's results before its first trip: reserved, not written
        if i.opcode == "copy-start":  # its result is (copy, source, context)
            return i.shapes[0].traffic + operands[0].traffic
        if i.opcode == "slice-start":  # (source, slice, context)
            return i.shapes[1].bytes + i.shapes[1].traffic
        if i.opcode in ("send", "recv"):
            return i.shapes[0].traffic  # what is sent or comes; the others are contexts
        if i.opcode in ("all-gather-start", "collective-permute-start"):
            # Its result is all operands, all results and contexts.
            arrays = [shape for operand in operands for shape in operand.shapes]
            arrays += i.shapes[len(arrays) : 2 * len(arrays)]
            return sum(shape.traffic for shape in arrays)
        if i.opcode != "fusion":
            return i.traffic + sum(o.traffic for o in operands)
        (name,) = i.called("calls")
        return self._fusion_traffic(name, operands)

    def _fusion_traffic(self, name: str, operands: list[Instruction]) -> float:
        """Bytes a fusion moves: of a sliced operand only the slice, of one updated in place only the update.

        A scanned block is given the parameters of all layers, and reads only its own.
        """
        table = self.computations[name]
        written, in_place = 0.0, set()
        for root in _roots(table):
            if root.opcode in ("dynamic-update-slice", "scatter"):
                written += table[root.operands[_UPDATES[root.opcode]]].traffic
                in_place.add(_source(root.operands[0], table))
            else:
                written += root.traffic
        read = 0.0
        for inner in table.values():
            if inner.opcode != "parameter" or inner.name in in_place:
                continue
            number = int(inner.literal)
            whole = (operands[number] if number < len(operands) else inner).traffic
            read += min(whole, self._read(name, inner.name))
        return written + read

    def _read(self, name: str, operand: str) -> float:
        """Bytes that a fused computation reads of an operand; infinity means all of it."""
        users = self._users(name, operand)
        return sum(u.traffic if u and u.opcode in _READ_IN_PART else math.inf for u in users)

    def _users(self, name: str, value: str) -> Iterator[Instruction | None]:
        """The users of a value, through bitcasts and inner fusions; None where it is the result."""
        for user in self.computations[name].values():
            if user.name == value and user.root:
                yield None
            if value not in user.operands:
                continue
            if user.opcode == "bitcast":
                yield from self._users(name, user.name)
            elif user.opcode == "fusion":
                (inner,) = user.called("calls")
                number = str(user.operands.index(value))
                parameter = next(
                    i.name
                    for i in self.computations[inner].values()
                    if i.opcode == "parameter" and i.literal == number
                )
                for use in self._users(inner, parameter):
                    if use is None:
                        yield from self._users(name, user.name)
                    else:
                        yield use
            else:
                yield user


def _operation(i: Instruction, table: Computation) -> str:
    """The source operation; the compiler's copies count as what they copy, kernels go by their name."""
    if i.source:
        return i.source
    if i.opcode in _COPIES and i.operands[0] in table:
        return _operation(table[i.operands[0]], table)
    return re.sub(r"[.\d]+$", "", i.name)


def _scattered(cost: Cost) -> Cost:
    """Recounts the TPU compiler's own reduce-scatter: an all-reduce of which each device keeps its part."""
    out = Cost(flops=cost.flops)
    for what, data in cost.data.items():
        kept = dataclasses.replace(what, kind="reduce-scatter")
        out.data[kept] += data
        out.sent[kept] += cost.sent[what] / 2
        out.count[kept] += cost.count[what]
    return out


def _root(table: Computation) -> Instruction:
    """The instruction that a computation returns."""
    return next(i for i in table.values() if i.root)


def _source(name: str, table: Computation) -> str:
    while table[name].opcode == "bitcast":
        name = table[name].operands[0]
    return name


def _roots(table: Computation) -> list[Instruction]:
    root = _root(table)
    names = root.operands if root.opcode == "tuple" else (root.name,)
    return [table[_source(name, table)] for name in names]


def kernel_flops(i: Instruction, table: Computation) -> float:
    """FLOPs of an attention kernel, which the compiler cannot see into; 0 for any other call.

    Forward: scores and weighted sums. Backward, in one kernel: scores again, and the gradients of weights,
    values, keys and queries.
    """
    products, arrays = next(
        (n for name, n in ATTENTION_KERNELS.items() if i.name.startswith(name)), (0, 1)
    )
    if not products:
        return 0.0
    # The other operands with as many dimensions are integers, which say what blocks the mask leaves.
    shapes = [s for name in i.operands for s in table[name].shapes if "f" in s.dtype]
    # [batch, heads, length, kv], without the batch if it is one, or [3, batch, length, heads * kv].
    query = next(shape for rank in (4, 3) for shape in shapes if len(shape.dims) == rank)
    return products * 2.0 * query.elements / arrays * query.dims[-2]


def dot_flops(i: Instruction, table: Computation) -> float:
    """2 × output elements × contracted elements."""
    left = table[i.operands[0]].shapes[0]
    dims = re.search(r"lhs_contracting_dims={([\d,]*)}", i.attributes)
    contracted = [int(d) for d in dims[1].split(",") if d] if dims else []
    return 2.0 * i.shapes[0].elements * math.prod(left.dims[d] for d in contracted)


def convolution_flops(i: Instruction, table: Computation) -> float:
    """2 × multiply-adds that meet an element of the input.

    The TPU compiler writes every matrix product as a convolution, and batch dimensions as dilated windows of
    which all but one tap fall between the elements.
    """
    left, right = (table[name].shapes[0] for name in i.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    assert labels is not None, i
    inputs, kernel, outputs = labels[1], labels[2], labels[3]
    match = re.search(r"window={([^}]*)}", i.attributes)
    window = dict(re.findall(r"(\w+)=([\w\-x]+)", match[1])) if match else {}
    spatial = sorted(c for c in kernel if c.isdigit())
    pairs = 1
    for position, label in enumerate(spatial):

        def option(name: str, default: str, position: int = position) -> str:
            return window[name].split("x")[position] if name in window else default

        pad_low = int(option("pad", "0_0").split("_")[0])
        stride, hole = int(option("stride", "1")), int(option("lhs_dilate", "1"))
        spread = int(option("rhs_dilate", "1"))
        size = left.dims[inputs.index(label)]
        out = i.shapes[0].dims[outputs.index(label)]
        taps = right.dims[kernel.index(label)]
        at = (np.arange(out) * stride - pad_low)[:, None] + np.arange(taps) * spread
        pairs *= int(((at >= 0) & (at % hole == 0) & (at // hole < size)).sum())
    batch = i.shapes[0].dims[outputs.index("b")]
    features = right.dims[kernel.index("o")]
    depth = right.dims[kernel.index("i")]
    return 2.0 * batch * features * depth * pairs
