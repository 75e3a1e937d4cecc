"""Rotation and attention in one TPU kernel, on query, key and value as a projection leaves them in memory.

A kernel that wants `[heads, length, head_dim]` needs splits, rotations and transposes after the projection.
Each of these reads and writes whole arrays, and heads of 64 features fill only half of each tile of 128. Here
one program takes a strip of `lcm(head_dim, 128)` features (one or several heads) of query, key and value,
rotates it, and computes the scores of its heads in fast memory. All keys are in fast memory at once, so the
softmax needs no running maximum.

Scores lie as `[keys, queries]`: sums over keys then add whole registers, and the statistics of the queries
are rows.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

LANES = 128
# Queries of one turn: their [keys, queries] arrays in float32 are 1 MB each at length 1024, and the gradient
# has four of them.
ROWS = 256
# The longest sequence and the largest strip whose arrays fit into the 16 MB that a kernel is given.
LONGEST = 2048
LARGEST = 1024 * 384
FORWARD, BACKWARD = "packed_attention_forward", "packed_attention_backward"


def packed_takes(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether there is a kernel for `[batch, length, heads, head_dim]` of `dtype`."""
    _, length, heads, head_dim = shape
    strip = math.lcm(head_dim, LANES)
    return (
        dtype == jnp.bfloat16
        and length % LANES == 0
        and length <= LONGEST
        and length * strip <= LARGEST
        and heads * head_dim % strip == 0
    )


def forward_packed(
    qkv: Array, cos: Array, sin: Array, *, interpret: bool = False
) -> tuple[Array, Array]:
    """Attention of rotated queries and keys, and its log-sum-exp.

    Args:
      qkv: `[batch, length, 3, heads * head_dim]`.
      cos, sin: `[length, head_dim // 2]` float32, from `rotary_tables`.
      interpret: run anywhere, slowly.

    Returns:
      `mixed: [batch, length, heads * head_dim]`, `lse: [batch, heads, length]` float32.
    """
    mixed, lse = _call(
        _forward_kernel,
        FORWARD,
        (qkv, cos, sin),
        [],
        ("rows", "statistics"),
        scratch=[qkv.dtype],
        products=2,
        interpret=interpret,
    )
    return mixed, lse.reshape(len(qkv), -1, qkv.shape[1])


def backward_packed(
    qkv: Array,
    cos: Array,
    sin: Array,
    mixed: Array,
    lse: Array,
    gradient: Array,
    *,
    interpret: bool = False,
) -> Array:
    """The gradient of `forward_packed` with respect to `qkv`, from its arguments and results.

    Args:
      qkv, cos, sin: the arguments of `forward_packed`.
      mixed, lse: its results.
      gradient: gradient of `mixed`, `[batch, length, heads * head_dim]`.
      interpret: run anywhere, slowly.
    """
    (d_qkv,) = _call(
        _backward_kernel,
        BACKWARD,
        (qkv, cos, sin),
        [("rows", mixed), ("rows", gradient.astype(qkv.dtype)), ("statistics", lse)],
        ("strip",),
        scratch=[qkv.dtype, jnp.float32],
        products=5,
        interpret=interpret,
    )
    return jnp.moveaxis(d_qkv, 0, 2)


def _forward_kernel(
    cos: Any, sin: Any, qkv: Any, mixed: Any, lse: Any, rotated: Any, *, head_dim: int
) -> None:
    rows, _ = _rotate_once(cos, sin, qkv, rotated, mixed.shape[0], head_dim)
    columns = []
    for head in range(qkv.shape[-1] // head_dim):
        lanes = slice(head * head_dim, (head + 1) * head_dim)
        value = qkv[2, :, lanes]
        scores = _dot(rotated[1, :, lanes], rotated[0, rows, lanes], 1, 1)
        largest = scores.max(axis=0, keepdims=True)
        unscaled = jnp.exp(scores - largest)
        total = unscaled.sum(axis=0, keepdims=True)
        lse[head : head + 1, :] = largest + jnp.log(total)
        columns.append(_dot(value, unscaled.astype(value.dtype), 0, 0) / total)
    mixed[...] = jnp.concatenate(columns).T.astype(mixed.dtype)


def _backward_kernel(
    cos: Any,
    sin: Any,
    qkv: Any,
    mixed: Any,
    gradient: Any,
    lse: Any,
    d_qkv: Any,
    rotated: Any,
    sums: Any,
    *,
    head_dim: int,
) -> None:
    from jax.experimental import pallas as pl

    rows, turn = _rotate_once(cos, sin, qkv, rotated, mixed.shape[0], head_dim)

    @pl.when(turn == 0)
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)

    dtype, slope = qkv.dtype, gradient[...]
    # What the softmax's gradient subtracts, the sums of W · dW, as a row for each head.
    products = (mixed[...].astype(jnp.float32) * slope.astype(jnp.float32)).T
    columns = []
    for head in range(qkv.shape[-1] // head_dim):
        lanes = slice(head * head_dim, (head + 1) * head_dim)
        query, key = rotated[0, rows, lanes], rotated[1, :, lanes]
        weights = jnp.exp(_dot(key, query, 1, 1) - lse[head : head + 1, :])
        d_weights = _dot(qkv[2, :, lanes], slope[:, lanes], 1, 1)
        delta = products[lanes].sum(axis=0, keepdims=True)
        d_scores = (weights * (d_weights - delta)).astype(dtype)
        sums[0, :, lanes] += _dot(d_scores, query, 1, 0)
        sums[1, :, lanes] += _dot(weights.astype(dtype), slope[:, lanes], 1, 0)
        columns.append(_dot(key, d_scores, 0, 0) * head_dim**-0.5)
    d_query = _rotate(jnp.concatenate(columns).T, cos[rows], -sin[rows], head_dim)
    d_qkv[0, rows] = d_query.astype(dtype)

    @pl.when(turn == pl.num_programs(2) - 1)
    def _() -> None:
        for part in _parts(cos, mixed.shape[0]):
            d_key = _rotate(sums[0, part], cos[part], -sin[part], head_dim)
            d_qkv[1, part] = d_key.astype(dtype)
            d_qkv[2, part] = sums[1, part].astype(dtype)


def _rotate_once(
    cos: Any, sin: Any, qkv: Any, rotated: Any, rows: int, head_dim: int
) -> tuple[Any, Any]:
    """Rotates a strip's query and key in its first turn; returns the rows of this turn and its number.

    The query is scaled too, after rounding, as in the other forms.
    """
    from jax.experimental import pallas as pl

    turn = pl.program_id(2)

    @pl.when(turn == 0)
    def _() -> None:
        for part in _parts(cos, rows):
            for i, scale in ((0, head_dim**-0.5), (1, 1.0)):
                x = _rotate(qkv[i, part].astype(jnp.float32), cos[part], sin[part], head_dim)
                x = x.astype(qkv.dtype).astype(jnp.float32) * scale
                rotated[i, part] = x.astype(qkv.dtype)

    return pl.ds(pl.multiple_of(turn * rows, rows), rows), turn


def _parts(table: Any, rows: int) -> list[slice]:
    """The rows of a strip in pieces, since the intermediate arrays of a whole strip would not fit."""
    return [slice(start, start + rows) for start in range(0, table.shape[0], rows)]


def _rotate(x: Array, cos: Array, sin: Array, head_dim: int) -> Array:
    """`rotate` of heads side by side, `[length, width]` float32; `_tables` has put the sign into `sin`."""
    from jax.experimental.pallas import tpu

    half, width = head_dim // 2, x.shape[-1]
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    first = lane % head_dim < half
    across = jnp.where(first, tpu.roll(x, width - half, 1), tpu.roll(x, half, 1))
    return x * cos + across * sin


def _dot(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    axes = (((left_axis,), (right_axis,)), ((), ()))
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        left, right, axes, precision=exact, preferred_element_type=jnp.float32
    )


def _tables(cos: Array, sin: Array, width: int) -> tuple[Array, Array]:
    """Tables for a strip, `[length, width]`; the sine of a head's first half is negative."""
    heads = width // (2 * cos.shape[1])
    return jnp.tile(cos, 2 * heads), jnp.tile(jnp.concatenate([-sin, sin], axis=1), heads)


def _call(
    kernel: Callable[..., None],
    name: str,
    inputs: tuple[Array, Array, Array],
    more: list[tuple[str, Array]],
    results: tuple[str, ...],
    *,
    scratch: list[Any],
    products: int,
    interpret: bool,
) -> Any:
    """Runs a kernel over batch, strips and turns of queries.

    The many arguments are everything in which the two kernels differ for Pallas. Kinds of arrays are "table"
    `[length, width]`, "strip" `[3, batch, length, features]`, "rows" `[batch, length, features]` and
    "statistics" `[batch, strips, heads of a strip, length]`.

    Args:
      kernel: a function of references to the blocks of all inputs and results, and to the scratch arrays.
      name: name of the kernel in profiles and compiled programs.
      inputs: `qkv`, `cos` and `sin`, as `forward_packed` takes them.
      more: kinds of the other inputs, and the arrays, which are reshaped to that kind.
      results: kinds of the results.
      scratch: dtypes of the scratch arrays, `[2, length, width]` each.
      products: number of `[length, length]` products of each head.
      interpret: run anywhere, slowly.
    """
    # Imported here, since importing Pallas takes longer than the rest of this package.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu

    qkv, cos, sin = inputs
    batch, length, _, features = qkv.shape
    head_dim = 2 * cos.shape[1]
    width = math.lcm(head_dim, LANES)
    largest = min(ROWS if width == LANES else LANES, length)
    rows = next(size for size in range(largest, 0, -LANES) if length % size == 0)
    heads = width // head_dim
    shapes = {
        "strip": jax.ShapeDtypeStruct((3, batch, length, features), qkv.dtype),
        "rows": jax.ShapeDtypeStruct((batch, length, features), qkv.dtype),
        "statistics": jax.ShapeDtypeStruct((batch, features // width, heads, length), jnp.float32),
    }
    blocks = {
        # It is read once, so a second buffer would lie idle.
        "table": pl.BlockSpec((length, width), lambda *_: (0, 0), pipeline_mode=pl.Buffered(1)),
        "strip": pl.BlockSpec((3, None, length, width), lambda b, s, _: (0, b, 0, s)),
        "rows": pl.BlockSpec((None, rows, width), lambda b, s, r: (b, r, s)),
        "statistics": pl.BlockSpec((None, None, heads, rows), lambda b, s, r: (b, s, 0, r)),
    }
    kinds = ("table", "table", "strip", *(kind for kind, _ in more))
    arrays = [*_tables(cos, sin, width), jnp.moveaxis(qkv, 2, 0)]
    arrays += [x.reshape(shapes[kind].shape) for kind, x in more]
    out_shape = [shapes[kind] for kind in results]
    everything: list[Any] = [*arrays, *out_shape]
    return pl.pallas_call(
        functools.partial(kernel, head_dim=head_dim),
        name=name,
        grid=(batch, features // width, length // rows),
        in_specs=[blocks[kind] for kind in kinds],
        out_specs=[blocks[kind] for kind in results],
        out_shape=out_shape,
        scratch_shapes=[tpu.VMEM((2, length, width), dtype) for dtype in scratch],
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * batch * features * length**2,
            transcendentals=batch * features // width * length**2,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in everything),
        ),
        interpret=interpret,
    )(*arrays)
