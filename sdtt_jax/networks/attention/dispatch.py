"""Chooses the form of attention that runs, by the platform lowered for, the arrays and the mesh.

The platform is known when a computation is lowered, not when it is traced, so that compiling ahead for a
TPU on a CPU host and exporting for several platforms take the right form. Hence primitives with a lowering
for each platform: `jax.lax.platform_dependent` would trace the kernels of every platform on every host,
and cannot export a Pallas kernel together with another platform (JAX 0.10). The choice depends only on
platform, shape, dtype, whether there are segments, the mesh in context and whether cuDNN is there; `FORMS` is
its table.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import PartitionSpec

from sdtt_jax.networks.attention import kernels, packed_kernel
from sdtt_jax.networks.attention.kernels import Grads, Saved
from sdtt_jax.networks.attention.rotary import rotate
from sdtt_jax.parallel.mesh import free_axes

# From this length on the CPU computes one head after the other. Forward and backward pass, ms on two cores,
# float32, all heads at once against head by head: 42 and 22 at length 512 (2 × 12 heads of 64), 29 and 20 at
# 256 (4 × 12 heads of 64), 5.1 and 5.0 at 128, 5.4 and 7.5 at 64 (64 × 4 heads of 32).
LENGTH_BY_HEAD = 256

PLATFORMS = ("cpu", "cuda", "tpu")
HEADS = ("batch", "length", "heads", "kv")
ROWS = ("batch", "heads", "length")
PACKED = ("batch", "length", None, "heads")
FLAT = ("batch", "length", "heads")
TABLE = (None, None)
SEGMENTS = ("batch", "length")

Axes = tuple[str | None, ...]


class Form(NamedTuple):
    """A form of attention."""

    platform: str  # the platform it is for; "any" for all
    # Whether it can compute arrays of a shape `[batch, length, heads, head_dim]` and a dtype.
    takes: Callable[[tuple[int, ...], jnp.dtype], bool]
    # `(query, key, value, causal) -> (mixed, lse)`; if it `confines`, the segments come after `causal`.
    forward: Callable[..., tuple[Array, Array]]
    # `(saved, gradient, causal) -> (d_query, d_key, d_value)`.
    backward: Callable[[Saved, Array, bool], Grads]
    confines: bool = True  # whether it takes segments


def _cudnn_takes(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    return kernels.cudnn_takes(shape, dtype) and kernels.cudnn_is_here()


# The first form that is for the platform and takes the arrays is the one that runs.
FORMS = {
    "splash": Form("tpu", kernels.splash_takes, kernels.forward_splash, kernels.backward_splash),
    # cuDNN knows lengths and biases, but no segments; with them a GPU runs `at_once`.
    "cudnn": Form("cuda", _cudnn_takes, kernels.forward_cudnn, kernels.backward_cudnn, False),
    "by_head": Form(
        "cpu",
        lambda shape, _dtype: shape[1] >= LENGTH_BY_HEAD,
        kernels.forward_by_head,
        kernels.backward_by_head,
    ),
    "at_once": Form(
        "any", lambda _shape, _dtype: True, kernels.forward_at_once, kernels.backward_at_once
    ),
}


def form(
    platform: str, shape: tuple[int, ...], dtype: jnp.dtype, *, segmented: bool = False
) -> str:
    """The name of the form that runs.

    Args:
      platform: "cpu", "cuda", "tpu" or another that JAX lowers for.
      shape: shape of query, key and value, `[batch, length, heads, head_dim]`.
      dtype: their dtype.
      segmented: whether attention is confined to segments.
    """
    return next(
        name
        for name, form in FORMS.items()
        if form.platform in (platform, "any")
        and form.takes(shape, dtype)
        and (form.confines or not segmented)
    )


def matmul_precision() -> str | None:
    """What `jax.default_matmul_precision` asks for in this context."""
    config: Any = jax.config
    return config.jax_default_matmul_precision


def _forward_on(platform: str, *arrays: Array, causal: bool) -> tuple[Array, ...]:
    query, key, value, *segments = arrays
    chosen = FORMS[form(platform, query.shape, query.dtype, segmented=bool(segments))]
    return chosen.forward(query, key, value, causal, *segments)


def _backward_on(platform: str, *arrays: Array, causal: bool) -> tuple[Array, ...]:
    query, key, value, mixed, lse, gradient, *segments = arrays
    chosen = FORMS[form(platform, mixed.shape, mixed.dtype, segmented=bool(segments))]
    return chosen.backward(Saved(query, key, value, mixed, lse, *segments), gradient, causal)


def _sizes(query: Array, *_: Array) -> tuple[int, int]:
    """Sequences and heads, from `query: [batch, length, heads, head_dim]`."""
    return query.shape[0], query.shape[2]


def _flat_sizes(qkv: Array, cos: Array, *_: Array) -> tuple[int, int]:
    """Sequences and heads, from `qkv: [batch, length, 3, heads * head_dim]`."""
    return qkv.shape[0], qkv.shape[3] // (2 * cos.shape[1])


def _is_packed(platform: str, qkv: Array, cos: Array, segments: list[Array]) -> bool:
    """Whether the packed kernel runs; it takes no segments, for which there is splash attention."""
    if segments:
        return False
    (batch, heads), (length, half) = _flat_sizes(qkv, cos), cos.shape
    return platform == "tpu" and packed_kernel.packed_takes(
        (batch, length, heads, 2 * half), qkv.dtype
    )


def _forward_rotated_on(platform: str, *arrays: Array) -> tuple[Array, ...]:
    qkv, cos, sin, *segments = arrays
    if _is_packed(platform, qkv, cos, segments):
        return packed_kernel.forward_packed(qkv, cos, sin)
    mixed, lse = _forward_on(platform, *_rotated(qkv, cos, sin), *segments, causal=False)
    return mixed.reshape(*qkv.shape[:2], -1), lse


def _backward_rotated_on(platform: str, *arrays: Array) -> tuple[Array, ...]:
    qkv, cos, sin, mixed, lse, gradient, *segments = arrays
    if _is_packed(platform, qkv, cos, segments):
        return (packed_kernel.backward_packed(*arrays),)
    inputs = _rotated(qkv, cos, sin)
    mixed, gradient = (x.reshape(inputs[0].shape) for x in (mixed, gradient))
    operands = (*inputs, mixed, lse, gradient, *segments)
    d_query, d_key, d_value = _backward_on(platform, *operands, causal=False)
    # The transpose of a rotation turns back.
    back = rotate(d_query, cos, -sin), rotate(d_key, cos, -sin), d_value
    return (jnp.stack(back, axis=2).reshape(qkv.shape),)


def _rotated(qkv: Array, cos: Array, sin: Array) -> tuple[Array, ...]:
    """Query, key and value, `[batch, length, heads, head_dim]` each."""
    heads = qkv.reshape(*qkv.shape[:3], -1, 2 * cos.shape[1])
    query, key, value = (jnp.squeeze(part, 2) for part in jnp.split(heads, 3, axis=2))
    return rotate(query, cos, sin), rotate(key, cos, sin), value


def _primitive(
    name: str,
    run_on: Callable[..., tuple[Array, ...]],
    sizes: Callable[..., tuple[int, int]],
    names: tuple[Axes, ...],
    out_names: tuple[Axes, ...],
) -> Callable[..., Any]:
    """A forward or backward pass, lowered to the form of each platform, on each device's share of the arrays.

    It is lowered long after the call and outside its context, so it keeps the precision of matrix products
    that the call asked for. Returns a function `(*arrays, **parameters) -> results`; an array that is None is
    left out.

    Args:
      name: name of the primitive.
      run_on: maps `(platform, *arrays, **parameters)` to results.
      sizes: maps the arrays to the numbers of sequences and heads.
      names: logical axes of each array; an array without "batch" is shared by all sequences.
      out_names: logical axes of each result.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def run(platform: str, *arrays: Array, precision: str | None, **parameters: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return run_on(platform, *arrays, **parameters)

    for platform in PLATFORMS:
        rule = mlir.lower_fun(functools.partial(run, platform), multiple_results=True)
        mlir.register_lowering(primitive, rule, platform=platform)
    on_others = functools.partial(run, "other")
    mlir.register_lowering(primitive, mlir.lower_fun(on_others, multiple_results=True))

    @primitive.def_abstract_eval
    def _(*arrays: Any, **parameters: Any) -> Any:
        return jax.make_jaxpr(functools.partial(on_others, **parameters))(*arrays).out_avals

    @functools.cache
    def compiled(**parameters: Any) -> Callable[..., Any]:
        return jax.jit(functools.partial(primitive.bind, **parameters))

    @primitive.def_impl
    def _(*arrays: Array, **parameters: Any) -> Any:
        # With `jit` disabled this would call itself for ever.
        with jax.disable_jit(False):
            return compiled(**parameters)(*arrays)

    def batched(arrays: Any, axes: Any, **parameters: Any) -> Any:
        """`jax.vmap`: the new axis joins the batch."""
        size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)

        def joined(x: Any, axis: int | None) -> Any:
            x = batching.bdim_at_front(x, axis, size)
            return x.reshape(-1, *x.shape[2:])

        rows = (
            joined(x, axis) if "batch" in logical else x
            for x, axis, logical in zip(arrays, axes, names, strict=False)
        )
        results = primitive.bind(*rows, **parameters)
        return [x.reshape(size, -1, *x.shape[1:]) for x in results], [0] * len(results)

    batching.primitive_batchers[primitive] = batched

    def bind(*given: Array | None, **parameters: Any) -> Any:
        arrays = [x for x in given if x is not None]
        # Products of 16-bit numbers are exact, and TPU kernels reject a request for more precision.
        precision = matmul_precision() if arrays[0].dtype.itemsize >= 4 else None
        local = functools.partial(primitive.bind, precision=precision, **parameters)
        plain = functools.partial(run_on, "other", **parameters)
        return _on_mesh(local, plain, names[: len(arrays)], out_names, sizes(*arrays), *arrays)

    return bind


def _on_mesh(
    local: Callable[..., Any],
    plain: Callable[..., Any],
    names: tuple[Axes, ...],
    out_names: tuple[Axes, ...],
    sizes: tuple[int, int],
    *arrays: Array,
) -> Any:
    """`local` on each device's share of batch and heads, by the mesh and the logical rules in context.

    A compiler cannot split a kernel or a loop over heads by itself. If the mesh does not divide batch or
    heads, `plain` runs instead, which the compiler can split.

    Args:
      local: maps the arrays of one device to results.
      plain: the same function, in a form that the compiler splits.
      names: logical axes of each of `arrays`.
      out_names: logical axes of each result.
      sizes: numbers of sequences and heads.
      *arrays: the arrays of all devices.
    """
    free = free_axes()
    if math.prod(free.values()) == 1:
        return local(*arrays)

    def mesh_axes(logical: Axes) -> list[tuple[str, ...]]:
        entries = nn.logical_to_mesh_axes(logical) or ()
        named = ((entry,) if isinstance(entry, str) else entry or () for entry in entries)
        return [tuple(axis for axis in axes if axis in free) for axes in named]

    for size, axes in zip(sizes, mesh_axes(("batch", "heads")), strict=True):
        if size % math.prod(free[axis] for axis in axes):
            return plain(*arrays)
    return jax.shard_map(
        lambda *arrays: tuple(local(*arrays)),  # a primitive returns a list
        in_specs=tuple(PartitionSpec(*mesh_axes(logical)) for logical in names),
        out_specs=tuple(PartitionSpec(*mesh_axes(logical)) for logical in out_names),
        axis_names=set(free),
        check_vma=False,  # Pallas kernels do not say over which axes their results vary
    )(*arrays)


# `(query, key, value, segments) -> (mixed, lse)`, with the keyword `causal`, all as in `attend`. What
# `lse: [batch, heads, length]` means, only `backward` on the same platform knows.
forward = _primitive(
    "attention_forward", _forward_on, _sizes, (HEADS,) * 3 + (SEGMENTS,), (HEADS, ROWS)
)
# `(query, key, value, mixed, lse, gradient of mixed, segments)` to the gradients of the first three.
backward = _primitive(
    "attention_backward",
    _backward_on,
    _sizes,
    (HEADS, HEADS, HEADS, HEADS, ROWS, HEADS, SEGMENTS),
    (HEADS, HEADS, HEADS),
)
# `(qkv, cos, sin, segments) -> (mixed, lse)`, as `attend_rotated` takes and returns them.
forward_rotated = _primitive(
    "rotated_attention_forward",
    _forward_rotated_on,
    _flat_sizes,
    (PACKED, TABLE, TABLE, SEGMENTS),
    (FLAT, ROWS),
)
# `(qkv, cos, sin, mixed, lse, gradient of mixed, segments)` to a tuple of the gradient of `qkv`.
backward_rotated = _primitive(
    "rotated_attention_backward",
    _backward_rotated_on,
    _flat_sizes,
    (PACKED, TABLE, TABLE, FLAT, ROWS, FLAT, SEGMENTS),
    (PACKED,),
)
