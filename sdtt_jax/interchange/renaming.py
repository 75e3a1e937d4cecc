"""Published weights as renaming tables: their names and shapes against our parameter tree.

A table is a list of `Entry`; `read_params` and `write_params` run it in the two directions and are
exact inverses of each other, bit for bit.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdtt_jax.errors import CheckpointError
from sdtt_jax.trees import flat_leaves, nested

LAYER = "{layer}"
SHOWN = 5  # names of tensors in an error message
# Path and array of a parameter in this library's names -> the leaf to store in the tree.
Place = Callable[[str, np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor, or with `{layer}` in its name one tensor per layer, which are stacked on axis 0."""

    name: str  # their name without prefix, for example `"blocks.{layer}.attn_qkv.weight"`
    path: str  # into our parameter tree, `"blocks/attn_qkv/kernel"`
    shape: tuple[int, ...]  # their shape, of one layer
    # Whether our array is the transpose of theirs (a linear map is `[out, in]` in PyTorch).
    transpose: bool = False
    # Axis of *their* array that counts vocabulary entries, padded with zeros up to `padded_vocab` on our
    # side.
    vocab_axis: int | None = None
    # Our shape of one layer where it is not merely padded or transposed (split heads).
    reshape: tuple[int, ...] | None = None

    def flat_shape(self, padded_vocab: int) -> tuple[int, ...]:
        """Our shape of one layer, padded and transposed, before it is reshaped."""
        shape = list(self.shape)
        if self.vocab_axis is not None:
            shape[self.vocab_axis] = padded_vocab
        return tuple(shape[::-1] if self.transpose else shape)

    def our_shape(self, padded_vocab: int) -> tuple[int, ...]:
        """Our shape of one layer."""
        return self.flat_shape(padded_vocab) if self.reshape is None else self.reshape


def kernel(name: str, path: str, out_dim: int, in_dim: int, **how: Any) -> Entry:
    """The weight of a PyTorch linear map, `[out, in]`, whose kernel here is `[in, out]`.

    `name` and `path` are those of the map; `how` are further fields of `Entry`.
    """
    return Entry(f"{name}.weight", f"{path}/kernel", (out_dim, in_dim), transpose=True, **how)


@dataclasses.dataclass(frozen=True)
class Table:
    """All tensors of one kind of network."""

    entries: Sequence[Entry]  # what both sides hold
    num_layers: int  # how many tensors a `{layer}` name stands for
    padded_vocab: int  # our vocabulary size, at least theirs
    # Tensors that follow from the config (rotary frequencies): checked where they are present, always
    # written.
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    # Names (with `{layer}`) of tensors that may be present and hold no parameters, such as causal masks.
    ignored: Sequence[str] = ()
    # Full name of a tensor that may repeat another one -> the other one's name without prefix.
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # The row of the vocabulary that is MASK on their side, where it is not the last. On our side MASK follows
    # all other tokens.
    mask_row: int | None = None


class Given(NamedTuple):
    """What a user specifies about a published model; None means not specified."""

    causal: bool | None = None  # whether it is a causal model or else a denoiser
    shift: bool | None = None  # whether a denoiser predicts token i at position i - 1
    mask_id: int | None = None  # MASK, in the published model's own numbering
    length: int | None = None  # tokens of a sequence

    @property
    def given_names(self) -> list[str]:
        """The names of the fields that are specified."""
        return [name for name, value in self._asdict().items() if value is not None]


NOTHING_GIVEN = Given()


class Stored(NamedTuple):
    """The config of a published model, the file that errors name, and what the user specifies."""

    content: Mapping[str, Any]
    where: str = "config.json"
    given: Given = NOTHING_GIVEN


@dataclasses.dataclass(frozen=True)
class Layout:
    """The format of a family of published checkpoints."""

    name: str  # of the layout
    anchor: str  # name, without prefix, of a tensor that tells this layout from the others
    # What all names may begin with; the first prefix under which the anchor is found is taken.
    prefixes: tuple[str, ...]
    # The config of our network, given the tensors, their prefix, the stored config, and the file that errors
    # name; raises `CheckpointError` if they make no such network.
    config: Callable[[Mapping[str, Any], str, Stored, str], Any]
    table: Callable[[Any], Table]  # where each tensor goes, given that config
    # MASK in the published numbering, given config and stored config; None where it is the last row or there
    # is none.
    mask_row: Callable[[Any, Stored], int | None] = lambda _config, _stored: None


def read_params(
    table: Table,
    tensors: Mapping[str, Any],
    prefix: str,
    where: str,
    place: Place | None = None,
) -> dict[str, Any]:
    """Our parameter tree (numpy float32) from tensors in their layout.

    One parameter is read at a time, so with a `place` that moves it to its device, at most one is ever held
    twice.

    Args:
      table: which tensor goes where.
      tensors: by full name; all names begin with `prefix`, for example `"backbone."`.
      where: the file or repository that errors name.
      place: called with each parameter as soon as it is read; None keeps the array.

    Raises:
      CheckpointError: naming the tensors that are missing, not expected, of another shape, not the constant
        that the config implies, or not the tensor that they should repeat.
    """
    _check_names(table, set(tensors).difference(table.tied), prefix, where)
    for copy, name in table.tied.items():
        if copy in tensors and not np.array_equal(tensors[copy], tensors[prefix + name]):
            raise CheckpointError(
                f"{where}: {copy} differs from {prefix + name}; this network ties them."
            )
    for name, expected in table.constants.items():
        constant = tensors.get(prefix + name, expected)
        # A model that was cast to half precision has its constants rounded too.
        rtol = 1e-5 if np.asarray(constant).itemsize >= 4 else 1e-2
        if not np.allclose(np.asarray(constant, np.float32), expected, rtol=rtol, atol=0):
            raise CheckpointError(
                f"{where}: {prefix + name} is not what this model computes; it belongs "
                "to a network with another head size or rotary base."
            )
    params: dict[str, Any] = {}

    def size(entry: Entry) -> int:
        return math.prod(entry.shape) * len(_names(entry.name, table.num_layers))

    # The largest first: while it is held twice, little else is there yet.
    for entry in sorted(table.entries, key=size, reverse=True):
        value = _read_entry(entry, table, tensors, prefix, where)
        params[entry.path] = value if place is None else place(entry.path, value)
        del value
    return nested(params)


def _read_entry(
    entry: Entry, table: Table, tensors: Mapping[str, Any], prefix: str, where: str
) -> np.ndarray:
    """Reads one of our parameters, copying each tensor into it as soon as it is read."""
    names, value = _names(entry.name, table.num_layers), np.zeros(0)
    for layer, name in enumerate(names):
        array = tensors[prefix + name]
        if array.shape != entry.shape:
            raise CheckpointError(
                f"{where}: {prefix + name} has shape {list(array.shape)}, but this model needs "
                f"{list(entry.shape)}; load it with the config it was trained with."
            )
        if layer == 0:
            # Allocated only once a tensor has the size that the config says: a wrong one may exceed memory.
            shape = (len(names), *entry.flat_shape(table.padded_vocab))
            value = np.zeros(shape, np.float32)
        theirs = value[layer].T if entry.transpose else value[layer]
        if entry.vocab_axis is not None and table.mask_row is not None:
            array = _mask_moved(array, entry.vocab_axis, table.mask_row, -1)
        theirs[tuple(map(slice, entry.shape))] = array
    ours = entry.our_shape(table.padded_vocab)
    return value.reshape((len(names), *ours) if LAYER in entry.name else ours)


def write_params(table: Table, params: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    """Converts our parameters to tensors in the published layout, by full name.

    `params` may be any tree of the same form, such as gradients.

    Raises:
      CheckpointError: naming the leaves of `params` that are missing, not expected or of another shape.
    """
    ours, expected = flat_leaves(params), {entry.path for entry in table.entries}
    for what, paths in (("lack", expected - set(ours)), ("hold unexpected", set(ours) - expected)):
        if paths:
            listed = ", ".join(sorted(paths))
            raise CheckpointError(f"The parameters {what} {listed}; they belong to another model.")
    tensors = {}
    for entry in table.entries:
        value = np.asarray(ours[entry.path])
        names = _names(entry.name, table.num_layers)
        layers = list(value) if LAYER in entry.name else [value]
        if len(layers) != len(names):
            raise CheckpointError(
                f"Parameter {entry.path} has {len(layers)} layers, but the config says {len(names)}."
            )
        for name, array in zip(names, layers, strict=True):
            theirs = _to_theirs(entry, array, table.padded_vocab)
            if entry.vocab_axis is not None and table.mask_row is not None:
                theirs = _mask_moved(theirs, entry.vocab_axis, -1, table.mask_row)
            tensors[prefix + name] = theirs
    return tensors | {prefix + name: constant for name, constant in table.constants.items()}


def _mask_moved(array: np.ndarray, axis: int, source: int, target: int) -> np.ndarray:
    """The array with the slice at `source` along `axis` moved to `target`; -1 is the last."""
    order = [i for i in range(array.shape[axis]) if i != source % array.shape[axis]]
    order.insert(target % array.shape[axis], source % array.shape[axis])
    return np.take(array, order, axis=axis)


def _to_theirs(entry: Entry, array: np.ndarray, padded_vocab: int) -> np.ndarray:
    ours = entry.our_shape(padded_vocab)
    if array.shape != ours:
        raise CheckpointError(
            f"Parameter {entry.path} has shape {list(array.shape)} in a layer, but the config implies "
            f"{list(ours)}; they belong to different models."
        )
    array = array.reshape(entry.flat_shape(padded_vocab))
    theirs = array.T if entry.transpose else array
    # Without the padding.
    return np.ascontiguousarray(theirs[tuple(map(slice, entry.shape))])


def find_prefix(
    tensors: Mapping[str, Any], anchor: str, prefixes: Sequence[str], where: str
) -> str:
    """The first of `prefixes` under which the tensor `anchor` is found; errors name the file `where`."""
    for prefix in prefixes:
        if prefix + anchor in tensors:
            return prefix
    tried = ", ".join(prefix + anchor for prefix in prefixes)
    raise CheckpointError(
        f"{where}: none of {tried} is there; this is not a checkpoint of this kind."
    )


def shape_of(
    tensors: Mapping[str, Any], name: str, where: str, dims: int | None = None
) -> tuple[int, ...]:
    """The shape of a tensor, from which a size of the network follows.

    It must have `dims` dimensions, or at least one if None; errors name the file or repository `where`.
    """
    if name not in tensors:
        module = name.removesuffix(".weight").rpartition(".")[0]
        near = sorted(other for other in tensors if other.startswith(f"{module}.")) or sorted(
            tensors
        )
        raise CheckpointError(
            f"{where}: tensor {name} is missing (there are {_shorten(near)}); the file is incomplete, or "
            "belongs to a network that this library lacks."
        )
    shape = tuple(map(int, tensors[name].shape))
    if not shape or dims not in (None, len(shape)):
        raise CheckpointError(
            f"{where}: {name} has shape {list(shape)}; the file is damaged: download it again."
        )
    return shape


def _names(template: str, num_layers: int) -> list[str]:
    """Names of the tensors that an entry's name stands for."""
    if LAYER not in template:
        return [template]
    return [template.replace(LAYER, str(layer)) for layer in range(num_layers)]


def _check_names(table: Table, present: set[str], prefix: str, where: str) -> None:
    if table.num_layers > len(present):
        raise CheckpointError(
            f"{where} holds {len(present)} tensors, too few for the {table.num_layers} layers that its "
            "config gives."
        )
    needed = {prefix + n for entry in table.entries for n in _names(entry.name, table.num_layers)}
    allowed = {prefix + n for name in table.ignored for n in _names(name, table.num_layers)}
    allowed |= {prefix + name for name in table.constants}
    missing = sorted(needed - present)
    extra = sorted(present - needed - allowed)
    if missing:
        raise CheckpointError(
            f"{where}: {_number(missing)} missing: {_shorten(missing)}; the file is "
            "incomplete or belongs to another model."
        )
    if extra:
        raise CheckpointError(
            f"{where}: {_number(extra)} not part of this model: {_shorten(extra)}; it is a "
            "checkpoint of another model or of a deeper one."
        )


def _number(names: list[str]) -> str:
    return f"{len(names)} tensor{' is' if len(names) == 1 else 's are'}"


def _shorten(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
