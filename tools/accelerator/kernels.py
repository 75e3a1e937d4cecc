"""Kernels against the same functions on the CPU of this machine, and the speed of attention's forms.

The same function, jitted, runs on the device and on JAX's CPU device, on equal arguments. Matrix products of
float32 are asked to be exact ("highest"); the device's default precision has rows of its own.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdtt_jax import objectives
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.nelbo import NelboConfig
from sdtt_jax.diffusion.sampler import SamplerConfig, prior_sample, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.keys import seed_key
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.networks.attention import attend, causal_mask, plain_attention
from sdtt_jax.networks.attention.dispatch import FORMS, form
from sdtt_jax.networks.attention.kernels import Saved
from sdtt_jax.ops.categorical import draw
from sdtt_jax.ops.digest import digest
from sdtt_jax.ops.head_loss import weighted_loss
from sdtt_jax.parallel.placement import unbox
from sdtt_jax.typing import Tree
from tools.accelerator.bench import Bench, BenchRow, seconds_of, share_of_peak

# Largest difference that rounding explains, as a share of the largest entry: bfloat16 keeps 8 bits, float16
# 11, and products of float32 by default 11 on a GPU (TF32) and 8 on a TPU.
BOUNDS = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 2e-2, "float32, highest": 2e-5}
# The largest share of different draws: rounding decides those that are nearly ties.
DISAGREEING = 0.01
SEED = 0


def kernels(bench: Bench) -> None:
    """The part "kernels"."""
    _attention(bench)
    for dtype in ("bfloat16", "float32, highest"):
        what = {"what": "weighted_loss", "dtype": dtype}
        bench.row("head and loss", what, _head, dtype, bench.tiny)
    draws = functools.partial(bench.row, "draws and digests")
    draws({"what": "digests of nine dtypes"}, _digests)
    draws({"what": "categorical draws"}, _draws, bench.tiny)
    draws({"what": "frequencies of draws"}, _frequencies, bench.tiny)
    if bench.has(25, "whole losses and a generation"):
        for name in ("teacher_loss", "distill_loss"):
            what = {"what": name, "dtype": "float32, highest"}
            bench.row("head and loss", what, _loss, name, bench.tiny)
        draws({"what": "tokens of a generation"}, _generation, bench.tiny)
    _speed(bench)


def on_both(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """Results on the first device and on the CPU, as NumPy arrays."""
    jitted, devices = jax.jit(function), (jax.devices()[0], jax.devices("cpu")[0])
    ours, theirs = (jax.device_get(jitted(*jax.device_put(arguments, to))) for to in devices)
    return ours, theirs


def verdict(difference: float, bound: float) -> BenchRow:
    """A row's figures."""
    return {"difference": difference, "bound": bound, "equal": difference <= bound}


def compared(ours: Tree, theirs: Tree, bound: float) -> BenchRow:
    """The largest difference, each leaf's as a share of its largest entry; a NaN is infinitely different."""

    def apart(one: Any, other: Any) -> float:
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        gap = float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30))
        return gap if np.isfinite(gap) else np.inf

    return verdict(max(jax.tree.leaves(jax.tree.map(apart, ours, theirs))), bound)


def platform() -> str:
    """The platform's name in the dispatch of attention."""
    name = jax.default_backend()
    return "cuda" if name == "gpu" else name


def _runs(name: str, shape: tuple[int, ...], kind: jnp.dtype) -> bool:
    """Whether a form of attention is for this platform and these arrays."""
    return FORMS[name].platform in (platform(), "any") and FORMS[name].takes(shape, kind)


def _precision(dtype: str) -> Any:
    return jax.default_matmul_precision("highest" if "highest" in dtype else None)


def _attention(bench: Bench) -> None:
    shape = (1, 128, 2, 64) if bench.tiny else (2, 1024, 4, 64)
    row = functools.partial(bench.row, "attention, forward and backward")
    for dtype in ("bfloat16", "float32") if bench.tiny else BOUNDS:
        kind = jnp.dtype(dtype.split(",")[0])
        chosen = form(platform(), shape, kind)
        for name in (n for n in FORMS if _runs(n, shape, kind)):
            for causal in (True,) if bench.tiny else (False, True):
                what = {"form": name, "chosen": name == chosen, "dtype": dtype, "causal": causal}
                row(what, _form_equals, name, dtype, causal, shape)
        if kind != jnp.float16:
            what = {"form": "attend", "chosen": True, "dtype": dtype, "causal": False}
            row(what, _form_equals, None, dtype, False, shape)


def _random(kind: str, *shape: int) -> list[jax.Array]:
    """Queries, keys, values, and a gradient with respect to attention's output."""
    keys = jax.random.split(seed_key(SEED), 4)
    return [jax.random.normal(key, shape).astype(kind) for key in keys]


def _form_equals(name: str | None, dtype: str, causal: bool, shape: tuple[int, ...]) -> BenchRow:
    """Compares values and gradients with plain attention."""
    kind = dtype.split(",")[0]

    def both(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        with _precision(dtype):
            return _with_gradients(name, causal, *arrays)

    ours = jax.jit(both)(*_random(kind, *shape))
    return compared(ours, _plain_on_cpu(kind, causal, shape), BOUNDS[dtype])


@functools.cache
def _plain_on_cpu(kind: str, causal: bool, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Plain attention and its gradients in float32 on the CPU, for inputs rounded to `kind`."""

    def plain(*inputs: jax.Array) -> jax.Array:
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in inputs)
        mask = causal_mask(shape[1]) if causal else None
        return jnp.swapaxes(plain_attention(query, key, value, mask), 1, 2)

    cpu = jax.devices("cpu")[0]
    arrays = [jax.device_put(x.astype(jnp.float32), cpu) for x in _random(kind, *shape)]
    return jax.jit(functools.partial(_differentiated, plain))(*arrays)


def _differentiated(
    attention: Callable[..., jax.Array], *arrays: jax.Array
) -> tuple[jax.Array, ...]:
    """Attention's output and, by JAX, its gradients; `arrays` are those of `_random`."""
    mixed, pull_back = jax.vjp(attention, *arrays[:3])
    return (mixed, *pull_back(arrays[3]))


def _with_gradients(name: str | None, causal: bool, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    if name is None:
        return _differentiated(functools.partial(attend, causal=causal), *arrays)
    query, key, value, gradient = arrays
    chosen = FORMS[name]
    mixed, lse = chosen.forward(query, key, value, causal)
    return (mixed, *chosen.backward(Saved(query, key, value, mixed, lse), gradient, causal))


def _speed(bench: Bench) -> None:
    """Times all forms at the small size's shape; forward and backward count as three times the forward."""
    shape = (1, 128, 2, 64) if bench.tiny else (16, 1024, 12, 64)
    batch, length, heads, head_dim = shape
    flops = 4 * batch * heads * length**2 * head_dim
    for dtype in ("bfloat16",) if bench.tiny else ("bfloat16", "float32"):
        for name in (*FORMS, *(["cudnn, differentiated by JAX"] if dtype == "bfloat16" else [])):
            if not _runs(name.split(",")[0], shape, jnp.dtype(dtype)):
                continue
            if not bench.has(4, f"the speed of {name} in {dtype}"):
                continue
            table, what = f"speed of attention, {list(shape)}", {"form": name, "dtype": dtype}
            bench.row(table, what, _speed_of, name, dtype, shape, flops)


def _speed_of(name: str, dtype: str, shape: tuple[int, ...], flops: float) -> BenchRow:
    arrays = _random(dtype, *shape)

    def forward(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        if "," in name:
            return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
        return FORMS[name].forward(query, key, value, False)[0]

    both = functools.partial(_with_gradients, name, False)
    if "," in name:
        both = functools.partial(_differentiated, forward)
    row: BenchRow = {}
    for title, function, passes in (("forward", forward, 1), ("both", both, 3)):
        seconds = seconds_of(jax.jit(function), *(arrays[:3] if passes == 1 else arrays))
        row |= {
            f"{title} ms": 1e3 * seconds,
            f"{title} share of peak": share_of_peak(passes * flops / seconds),
        }
    return row


def _head(dtype: str, tiny: bool) -> BenchRow:
    """Value and gradients of the fused head with a cross-entropy, at half of the positions."""
    sizes, kind = (300, 32) if tiny else (50_257, 256), dtype.split(",")[0]
    config = DenoiserConfig(*sizes, embed_dim=64, num_heads=2, compute_dtype=kind)
    denoiser = Denoiser(config)
    keys = jax.random.split(seed_key(SEED), 4)
    shape = (4, config.length)
    kernel = jax.random.normal(keys[0], (config.embed_dim, config.padded_vocab)) * 0.1
    head = {"head": {"linear": {"kernel": kernel, "bias": jnp.zeros(config.padded_vocab)}}}
    hidden = jax.random.normal(keys[1], (*shape, config.embed_dim)).astype(config.compute_dtype)
    weights = jax.random.bernoulli(keys[2], 0.5, shape).astype(jnp.float32)
    tokens = jax.random.randint(keys[3], shape, 0, config.vocab_size)

    def loss(head: Tree, hidden: jax.Array, weights: jax.Array, tokens: jax.Array) -> jax.Array:
        compare = optax.softmax_cross_entropy_with_integer_labels
        return weighted_loss(denoiser, head, compare, hidden, weights, tokens)[0]

    def value_and_gradients(*arguments: Any) -> Any:
        with _precision(dtype):
            return jax.value_and_grad(loss, argnums=(0, 1))(*arguments)

    return compared(*on_both(value_and_gradients, head, hidden, weights, tokens), BOUNDS[dtype])


@functools.cache
def _small(tiny: bool) -> tuple[MaskedDiffusion, int, Tree]:
    """A network, its number of positions, and parameters."""
    length, num_layers, embed_dim = (16, 1, 32) if tiny else (128, 2, 128)
    config = DenoiserConfig(500, length, num_layers, embed_dim, num_heads=2)
    denoiser = Denoiser(config)
    params, rng = unbox(jax.jit(denoiser.init)(seed_key(SEED))), np.random.default_rng(SEED)
    # A fresh network's head is zero, and every loss trivial. NumPy's noise needs no compiling.
    moved = jax.tree.map(
        lambda x: jax.device_put(np.asarray(x) + 0.02 * rng.standard_normal(x.shape, np.float32)),
        params,
    )
    return MaskedDiffusion(denoiser, make_schedule()), length, moved


def _loss(name: str, tiny: bool) -> BenchRow:
    """Compares a whole loss and its gradients; equal keys make equal masks and draws of the teacher."""
    diffusion, length, params = _small(tiny)
    config: Any = {"teacher_loss": NelboConfig, "distill_loss": DistillConfig}[name]()
    loss_fn = getattr(objectives, name)(diffusion, config)
    tokens = jax.random.randint(seed_key(SEED), (4, length), 0, diffusion.mask_id)

    def value_and_gradients(params: Tree, tokens: jax.Array) -> Any:
        teacher = jax.tree.map(lambda x: 1.1 * x, params)
        context = {"teacher_params": teacher, "dt": jnp.float32(1 / 16)}

        def total(params: Tree) -> jax.Array:
            loss = loss_fn(params, context, tokens, seed_key(SEED))
            return loss.total / loss.weight

        with _precision("highest"):
            return jax.value_and_grad(total)(params)

    return compared(*on_both(value_and_gradients, params, tokens), 2e-3)


def _generation(tiny: bool) -> BenchRow:
    """The share of equal tokens; rounding may flip a draw that is nearly a tie, and all that follows."""
    diffusion, length, params = _small(tiny)

    def write(params: Tree) -> jax.Array:
        x_init = prior_sample(8, length, diffusion.mask_id)
        with _precision("highest"):
            return sample(diffusion, params, seed_key(SEED), x_init, SamplerConfig(8))[0].x

    return _agreement(*on_both(write, params))


def _agreement(ours: Any, theirs: Any) -> BenchRow:
    return verdict(float((np.asarray(ours) != np.asarray(theirs)).mean()), DISAGREEING)


def _digests() -> BenchRow:
    kinds = ["bfloat16", "float16", "float32", "int8", "int32", "uint8", "uint32", "bool", "int16"]
    x = jax.random.normal(seed_key(SEED), (300, 129)) * 50
    arrays = {kind: x.astype(kind) for kind in kinds}
    return compared(*on_both(functools.partial(jax.tree.map, digest), arrays), 0.0)


def _draws(tiny: bool) -> BenchRow:
    """Draws with one key and equal logits, which must be equal but for ties within rounding."""
    logits = 3 * jax.random.normal(seed_key(SEED), (16 if tiny else 1024, 50_257))
    return _agreement(*on_both(lambda x: draw(seed_key(SEED + 1), x), logits))


def _frequencies(tiny: bool) -> BenchRow:
    """A million draws of 8 tokens: the largest deviation from the exact law in standard errors."""
    count = 2**16 if tiny else 2**20
    law = jax.nn.softmax(jnp.arange(8.0) - 7)

    def frequencies(law: jax.Array) -> jax.Array:
        drawn = draw(seed_key(SEED), jnp.broadcast_to(jnp.log(law), (count, 8)))
        return jnp.bincount(drawn, length=8) / count

    measured, exact = np.asarray(jax.jit(frequencies)(law), np.float64), np.asarray(law, np.float64)
    errors = np.sqrt(exact * (1 - exact) / count)
    return verdict(float(np.abs((measured - exact) / errors).max()), 5.0)
