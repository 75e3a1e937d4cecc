"""Which form of attention runs: by the platform that is lowered for, by shape, and on which mesh.

The platform is settled when a computation is lowered, not when it is traced, so that compiling ahead for a
TPU on a CPU host and exporting for several platforms take the right form. Hence two primitives with a
lowering for each platform: `jax.lax.platform_dependent` would trace the kernels of every platform on every
host, and cannot export a Pallas kernel beside another platform (JAX 0.10). The choice depends on platform,
shape, dtype and the mesh in context alone:

| platform | form | where it applies |
| --- | --- | --- |
| TPU | splash attention | `attention_kernels.splash_takes` |
| CUDA | cuDNN flash attention | `attention_kernels.cudnn_takes`, and cuDNN is installed |
| CPU | one head after the other | length ≥ `LENGTH_BY_HEAD` |
| any | all heads at once | everywhere else |
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import PartitionSpec

from sdtt_jax.networks.attention import kernels as kernels
from sdtt_jax.networks.attention.kernels import Grads

# From this length on the CPU takes one head after the other. Forward with backward, ms of CPU time on two
# cores, float32, all heads at once against head by head: 330 and 224 at length 1024 (12 heads of 64), 34
# and 31 at 256 (4 × 8 heads of 32), 20 and 25 at 64 (64 × 4 heads of 32).
LENGTH_BY_HEAD = 512

PLATFORMS = ("cpu", "cuda", "tpu")
HEADS = ("batch", "length", "heads", "kv")
ROWS = ("batch", "heads", "length")


def form(platform: str, shape: tuple[int, ...], dtype: jnp.dtype) -> str:
    """The form that `platform` takes for arrays `[batch, length, heads, head_dim]` of `dtype`."""
    if platform == "tpu" and kernels.splash_takes(shape, dtype):
        return "splash"
    if platform == "cuda" and kernels.cudnn_takes(shape, dtype) and kernels.cudnn_is_here():
        return "cudnn"
    if platform == "cpu" and shape[1] >= LENGTH_BY_HEAD:
        return "by_head"
    return "at_once"


def forward(
    query: jax.Array, key: jax.Array, value: jax.Array, causal: bool
) -> tuple[jax.Array, jax.Array]:
    """`mixed: [batch, length, heads, head_dim]` and `lse: [batch, heads, length]`.

    `lse` is for `backward` on the same platform and means nothing else.
    """

    def local(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(_FORWARD.bind(*arrays, causal=causal))

    plain = functools.partial(kernels.forward_at_once, causal=causal)
    mixed, lse = _on_mesh(local, plain, (HEADS,) * 3, (HEADS, ROWS), query, key, value)
    return mixed, lse


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mixed: jax.Array,
    lse: jax.Array,
    gradient: jax.Array,
    causal: bool,
) -> Grads:
    """Gradients of query, key and value, from that of `mixed`."""

    def local(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(_BACKWARD.bind(*arrays, causal=causal))

    plain = functools.partial(kernels.backward_at_once, causal=causal)
    names = (HEADS, HEADS, HEADS, HEADS, ROWS, HEADS)
    arrays = (query, key, value, mixed, lse, gradient)
    d_query, d_key, d_value = _on_mesh(local, plain, names, (HEADS,) * 3, *arrays)
    return d_query, d_key, d_value


def _primitive(direction: str) -> Primitive:
    """The forward or backward pass of one device, lowered to the form of each platform."""
    primitive = Primitive(f"attention_{direction}")
    primitive.multiple_results = True

    def run(*arrays: jax.Array, causal: bool, platform: str) -> tuple[jax.Array, ...]:
        name = form(platform, arrays[0].shape, arrays[0].dtype)
        results: Any = getattr(kernels, f"{direction}_{name}")(*arrays, causal)
        return tuple(results)

    for platform in PLATFORMS:
        rule = mlir.lower_fun(functools.partial(run, platform=platform), multiple_results=True)
        mlir.register_lowering(primitive, rule, platform=platform)
    rule = mlir.lower_fun(functools.partial(run, platform="other"), multiple_results=True)
    mlir.register_lowering(primitive, rule)

    @primitive.def_abstract_eval
    def _(*arrays: Any, causal: bool) -> Any:
        plain = functools.partial(run, causal=causal, platform="other")
        return jax.make_jaxpr(plain)(*arrays).out_avals

    @functools.cache
    def compiled(causal: bool) -> Callable[..., Any]:
        return jax.jit(functools.partial(primitive.bind, causal=causal))

    @primitive.def_impl
    def _(*arrays: jax.Array, causal: bool) -> Any:
        return compiled(causal)(*arrays)

    def batched(arrays: Any, axes: Any, *, causal: bool) -> Any:
        """`jax.vmap`: the new axis joins the batch."""
        size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
        rows = [batching.bdim_at_front(x, axis, size) for x, axis in zip(arrays, axes, strict=True)]
        results = primitive.bind(*(x.reshape(-1, *x.shape[2:]) for x in rows), causal=causal)
        return [x.reshape(size, -1, *x.shape[1:]) for x in results], [0] * len(results)

    batching.primitive_batchers[primitive] = batched
    return primitive


def _on_mesh(
    local: Callable[..., Any],
    plain: Callable[..., Any],
    names: tuple[tuple[str, ...], ...],
    out_names: tuple[tuple[str, ...], ...],
    *arrays: jax.Array,
) -> Any:
    """`local` on each device's share of batch and heads, by the mesh and the logical rules in context.

    A compiler cannot split a kernel or a loop over heads by itself. Where the mesh does not divide batch or
    heads, `plain` runs instead, which it can.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = {axis for axis in mesh.axis_names if axis not in mesh.manual_axes}
    if math.prod(mesh.shape[axis] for axis in free) == 1:
        return local(*arrays)

    def mesh_axes(logical: tuple[str, ...]) -> list[tuple[str, ...]]:
        entries = nn.logical_to_mesh_axes(logical) or ()
        named = ((entry,) if isinstance(entry, str) else entry or () for entry in entries)
        return [tuple(axis for axis in axes if axis in free) for axes in named]

    batch, _, heads, _ = arrays[0].shape
    for size, axes in zip((batch, heads), mesh_axes(("batch", "heads")), strict=True):
        if size % math.prod(mesh.shape[axis] for axis in axes):
            return plain(*arrays)
    return jax.shard_map(
        local,
        in_specs=tuple(PartitionSpec(*mesh_axes(logical)) for logical in names),
        out_specs=tuple(PartitionSpec(*mesh_axes(logical)) for logical in out_names),
        axis_names=free,
        check_vma=False,  # Pallas kernels do not say over which axes their results vary
    )(*arrays)


_FORWARD = _primitive("forward")
_BACKWARD = _primitive("backward")
