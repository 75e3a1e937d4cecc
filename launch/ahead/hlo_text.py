"""The text of a compiled program, parsed: computations, instructions, shapes, groups of devices."""

import dataclasses
import math
import re

import numpy as np

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "token": 0}
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:{([^}]*)})?")
# Memory space 1 is on the chip itself: arrays there move no bytes of the large memory.
_ON_CHIP = "S(1)"
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* {$")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# What JAX adds to the scopes of the source: transformations, and the bodies of control flow.
_WRAPPED = re.compile(r"(?:jvp|transpose|vmap|remat)\((.*)\)")
_PLUMBING = re.compile(
    r"|jit\(.*\)|while|body|cond|branch_\d+_fun|closed_call|eval_jaxpr|checkpoint|rematted_computation|shard_map"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: dtype, dimensions, and whether it lies in the chip's large memory."""

    dtype: str
    dims: tuple[int, ...]
    off_chip: bool = True

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return self.elements * bits / 8

    @property
    def traffic(self) -> float:
        """Bytes that reading or writing the array moves."""
        return self.bytes if self.off_chip else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str
    root: bool

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)

    @property
    def traffic(self) -> float:
        return sum(shape.traffic for shape in self.shapes)

    @property
    def op_name(self) -> str:
        """The instruction's origin in the program, as JAX wrote it there; else empty."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    @property
    def source(self) -> str:
        """`source_of` its `op_name`; empty if it has none."""
        return source_of(self.op_name)

    def called(self, *keys: str) -> list[str]:
        """Names of the computations under these attributes."""
        names = []
        for key in keys:
            match = re.search(rf"\b{key}=(?:{{([^}}]*)}}|%?([\w.\-]+))", self.attributes)
            if match:
                names += [n.strip().lstrip("%") for n in (match[1] or match[2]).split(",")]
        return names


def source_of(op_name: str) -> str:
    """The source that an `op_name` tells: scopes, operation, and the pass unless it is the forward one."""
    path = op_name.partition(";")[0].split("/")
    names = []
    for name in path:
        while wrapped := _WRAPPED.fullmatch(name):
            name = wrapped[1]
        if not _PLUMBING.fullmatch(name):
            names.append(re.sub(r"\.\d+$", "", name))
    recomputed = "rematted_computation" in path
    backward = any("transpose(" in name for name in path)
    suffix = " (recomputed)" if recomputed else " (backward)" if backward else ""
    return "/".join(names) + suffix if names else ""


def device_groups(attributes: str, devices: int) -> np.ndarray:
    """Devices that exchange data with each other: `[groups, members]`, or pairs of a permutation."""
    pairs = re.search(r"source_target_pairs={((?:{[\d,]+},?)*)}", attributes)
    listed = pairs or re.search(r"replica_groups={((?:{[\d,]+},?)+)}", attributes)
    if listed:
        return np.array([_ints(group) for group in re.findall(r"{([\d,]+)}", listed[1])])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](.*?){([^}]*)}", attributes)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        ids = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", named[2])
        place = _iota(ids[1], ids[2]) if ids else np.arange(math.prod(sizes.values()))
        members = re.findall(r"'(\w+)'", named[3])
        order = [*(a for a in sizes if a not in members), *members]
        place = place.reshape(tuple(sizes.values())).transpose(
            [list(sizes).index(a) for a in order]
        )
        return place.reshape(-1, math.prod(sizes[a] for a in members))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        return _iota(iota[2], iota[3]).reshape(_ints(iota[1]))
    return np.arange(devices)[None]


def _iota(shape: str, order: str | None) -> np.ndarray:
    sizes = _ints(shape)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(_ints(order)) if order else ids


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


Computation = dict[str, Instruction]  # by name


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the entry's name."""
    computations: dict[str, Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        header = not line.startswith(" ") and _HEADER.match(line)
        if header:
            current = header[2]
            computations[current] = {}
            entry = current if header[1] else entry
        elif current and line.startswith("  "):
            instruction = _instruction(line)
            if instruction:
                computations[current][instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _balanced(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _balanced("(" + rest) - 1
    inside, attributes = rest[: end - 1], rest[end:]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    shapes = tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), _ON_CHIP not in layout)
        for dtype, dims, layout in _SHAPE.findall(shape)
    )
    return Instruction(head[2], opcode, shapes, operands, attributes, inside, bool(head[1]))


def _balanced(text: str) -> int:
    """Length of the parenthesised part that `text` begins with."""
    depth = 0
    for parenthesis in re.finditer(r"[()]", text):
        depth += 1 if parenthesis[0] == "(" else -1
        if depth == 0:
            return parenthesis.end()
    raise ValueError(f"unbalanced: {text[:80]}")
