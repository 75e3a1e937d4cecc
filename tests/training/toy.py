"""A small network of plain jnp functions with the parameter tree of the real ones.

Blocks are stacked on axis 0, attention kernels have heads, leaves are boxed with logical axes.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdtt_jax.parallel.mesh import MeshConfig, make_mesh
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import OptimizerConfig
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import Loss, make_train_step
from sdtt_jax.trees import flat_leaves

LAYERS, EMBED, HEADS, KV, MLP, VOCAB, LENGTH = 2, 16, 4, 4, 32, 64, 8


def init(key: jax.Array) -> dict:
    def leaf(name, shape, axes, scale=0.2):
        value = scale * jax.random.normal(jax.random.fold_in(key, sum(name.encode())), shape)
        return nn.LogicallyPartitioned(value, axes)

    def ones(shape, axes):
        return nn.LogicallyPartitioned(jnp.ones(shape), axes)

    qkv = (LAYERS, EMBED, 3, HEADS, KV)
    out = (LAYERS, HEADS, KV, EMBED)
    return {
        "embed": {"embedding": leaf("embed", (VOCAB, EMBED), ("vocab", "embed"))},
        "blocks": {
            "attn_qkv": {"kernel": leaf("qkv", qkv, ("layers", "embed", None, "heads", "kv"))},
            "attn_out": {"kernel": leaf("out", out, ("layers", "heads", "kv", "embed"))},
            "mlp": {
                "up": {"kernel": leaf("up", (LAYERS, EMBED, MLP), ("layers", "embed", "mlp"))},
                "down": {"kernel": leaf("down", (LAYERS, MLP, EMBED), ("layers", "mlp", "embed"))},
            },
            "norm1": {"scale": ones((LAYERS, EMBED), ("layers", "embed"))},
            "adaln": {
                "kernel": leaf("adaln", (LAYERS, EMBED, EMBED), ("layers", None, "embed")),
                "bias": leaf("bias", (LAYERS, EMBED), ("layers", "embed")),
            },
        },
        "head": {"linear": {"kernel": leaf("head", (EMBED, VOCAB), ("embed", "vocab"))}},
    }


def logits(params: dict, tokens: jax.Array) -> jax.Array:
    """`[batch, length] -> [batch, length, VOCAB]`."""
    x = params["embed"]["embedding"][tokens]
    x = nn.with_logical_constraint(x, ("batch", "length", "embed"))

    def block(x, p):
        y = x * p["norm1"]["scale"] + x @ p["adaln"]["kernel"] + p["adaln"]["bias"]
        q, k, v = jnp.moveaxis(jnp.einsum("ble,eihk->blihk", y, p["attn_qkv"]["kernel"]), 2, 0)
        weights = jax.nn.softmax(jnp.einsum("blhk,bmhk->bhlm", q, k))
        y = jnp.einsum("bhlm,bmhk->blhk", weights, v)
        x = x + jnp.einsum("blhk,hke->ble", y, p["attn_out"]["kernel"])
        x = x + jnp.tanh(x @ p["mlp"]["up"]["kernel"]) @ p["mlp"]["down"]["kernel"]
        return nn.with_logical_constraint(x, ("batch", "length", "embed")), None

    x, _ = jax.lax.scan(block, x, params["blocks"])
    return x @ params["head"]["linear"]["kernel"]


def loss_fn(params: dict, context: dict, batch: jax.Array, key: jax.Array) -> Loss:
    """Predict a random half of the tokens; the weight is how many, so microbatches differ in it."""
    counted = jax.random.bernoulli(key, 0.5, batch.shape)
    return weighted_loss(params, context, batch, counted)


def plain_loss_fn(params: dict, context: dict, batch: jax.Array, key: jax.Array) -> Loss:
    """The loss without randomness: only even tokens count."""
    del key
    return weighted_loss(params, context, batch, batch % 2 == 0)


def weighted_loss(params: dict, context: dict, batch: jax.Array, counted: jax.Array) -> Loss:
    log_probs = jax.nn.log_softmax(logits(params, jnp.where(counted, 0, batch)))
    nll = -jnp.take_along_axis(log_probs, batch[..., None], axis=-1)[..., 0]
    nll = nll * context.get("scale", 1.0)
    total, weight = jnp.sum(nll * counted), jnp.sum(counted)
    right = (log_probs.argmax(-1) == batch) & counted
    return Loss(total, weight, {"accuracy": right.sum() / jnp.maximum(weight, 1)})


def batch_at(step: int, batch_size: int = 16) -> np.ndarray:
    return np.random.default_rng(step).integers(0, VOCAB, (batch_size, LENGTH), dtype=np.int32)


def configured(name: str = "adamw", num_steps: int = 12, **fields) -> TrainConfig:
    optimizer = OptimizerConfig(name, learning_rate=1e-2, warmup_steps=2, schedule="cosine")
    values = {"batch_size": 16, "ema_decay": 0.99, "optimizer": optimizer} | fields
    return TrainConfig(num_steps=num_steps, **values)


def setup(config: TrainConfig, mesh_config=None, loss=loss_fn, context=None):
    """`(state, step, abstract state)` of the toy on a mesh over all devices."""
    spec = StateSpec(config, make_mesh(mesh_config or MeshConfig()))
    init_fn = functools.partial(init, jax.random.key(0))
    abstract = spec.abstract(init_fn, context)
    return spec.init(init_fn, context), make_train_step(loss, config), abstract


def until(config: TrainConfig, num_steps: int, **fields) -> TrainConfig:
    """The loop's config, to stop at another step than the learning rate is made for."""
    return dataclasses.replace(config, num_steps=num_steps, optimizer=OptimizerConfig(), **fields)


def abstract_like(state: TrainState) -> TrainState:
    """The `jax.ShapeDtypeStruct` tree, with shardings, of an existing state."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def host(state: TrainState) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flat_leaves(state).items()}


def assert_same(a: TrainState, b: TrainState) -> None:
    """Bit for bit."""
    left, right = host(a), host(b)
    assert left.keys() == right.keys()
    for path in left:
        assert left[path].tobytes() == right[path].tobytes(), path
