"""What runs on meshes of virtual devices: the real denoiser's teacher step, distillation step and sampler.

python -m tests.multidevice.programs DIRECTORY   runs it on every mesh of `MESHES` and prints JSON

One process for all meshes, since most of such a test is importing and starting JAX. `run` is also what
several processes run together (see processes.py beside this file).
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.distillers import CoupledStage, DistillStage
from experiments.settings import TeacherConfig
from launch.ahead.hlo import Module
from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.checkpoints.store import Checkpoints
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.sampler import SamplerConfig, sample
from sdtt_jax.diffusion.schedule import make_schedule
from sdtt_jax.model.batches import map_batches
from sdtt_jax.networks.base import ADAPTERS, abstract_params
from sdtt_jax.networks.config import (
    CoupledConfig,
    DenoiserConfig,
    LlamaDenoiserConfig,
    NoiseConfig,
)
from sdtt_jax.networks.coupled import CoupledDenoiser
from sdtt_jax.networks.denoiser import Denoiser
from sdtt_jax.networks.llama import LlamaDenoiser
from sdtt_jax.networks.lora import LoraConfig, init_adapters
from sdtt_jax.objectives import coupled_loss, distill_loss, teacher_loss
from sdtt_jax.parallel.mesh import RULES, MeshConfig, make_mesh, use_mesh
from sdtt_jax.parallel.placement import place, place_rows, place_whole, tree_shardings, unbox
from sdtt_jax.parallel.processes import to_host
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import OptimizerConfig
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import make_train_step
from sdtt_jax.trees import flat_leaves
from tests.training import toy
from tests.worlds import noisy_params

ONE = (1, 1, 1)
BRIEF = (2, 2, 2)
MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8))
BATCH, LENGTH, STEPS = 16, 12, 3
DENOISER = Denoiser(
    # 1000 tokens and MASK are eight lanes of 128, so that a model axis of 8 splits the head's columns too.
    DenoiserConfig(
        vocab_size=1000, length=LENGTH, num_layers=2, embed_dim=32, num_heads=8, cond_dim=8
    )
)
ROWS = np.arange(10, dtype=np.int32)
NARROW_MESHES = (ONE, (2, 1, 1), (1, 2, 1), (1, 1, 2))
LLAMA_MESHES = (ONE, (1, 1, 8), (2, 2, 2))
LLAMA = LlamaDenoiser(
    LlamaDenoiserConfig(
        vocab_size=127,
        length=LENGTH,
        num_layers=2,
        embed_dim=32,
        num_heads=8,
        num_kv_heads=2,
        qk_norm=True,
        qkv_bias=True,
        tied_head=True,
    )
)
DIFFUSION = MaskedDiffusion(DENOISER, make_schedule())


def train_config(name: str) -> TrainConfig:
    optimizer = OptimizerConfig(name, learning_rate=1e-2, warmup_steps=1)
    return TrainConfig(STEPS, BATCH, microbatches=1, optimizer=optimizer, ema_decay=0.9)


TEACHER = TeacherConfig(train=train_config("muon"))
DISTILL = DistillStage(train=train_config("adamw"))


# Only one mesh with all axes: a step takes a few seconds to compile on each.
COUPLED_MESHES = (ONE, (2, 2, 2))
COUPLED = CoupledStage(
    num_calls=4,
    num_distill_calls=2,
    num_rounds=2,
    soft_weight=0.5,
    noise=NoiseConfig("two-level", hidden_dim=16),
    train=train_config("adamw"),
)


def batch_at(step: int, mesh: jax.sharding.Mesh) -> jax.Array:
    tokens = np.random.default_rng(step).integers(0, 1000, (BATCH, LENGTH), dtype=np.int32)
    return place_rows(lambda rows: tokens[rows], tokens.shape, mesh)


def start(stage: str, mesh: jax.sharding.Mesh, context: Any = None) -> tuple[TrainState, Any]:
    """The state of a stage at step 0, and the function that takes a step."""
    config = TEACHER if stage == "teacher" else DISTILL
    loss = (
        teacher_loss(DIFFUSION, TEACHER) if stage == "teacher" else distill_loss(DIFFUSION, DISTILL)
    )
    state = StateSpec(config.train, mesh).init(functools.partial(init, stage), context)
    return state, make_train_step(loss, config.train)


def init(stage: str) -> Any:
    """Initial parameters: for the teacher the network's own plus noise, for its student noise alone.

    Fresh networks predict every token alike: a student would agree with its teacher everywhere.
    """
    if stage == "teacher":
        return jax.tree.map(jnp.add, DENOISER.init(jax.random.key(0)), scattered(DENOISER, 1))
    return jax.tree_util.tree_map_with_path(_around_one, scattered(DENOISER, 2))


def scattered(network: Any, seed: int) -> Any:
    """Boxed numbers between -0.17 and 0.17 for all parameters, hashed from their places.

    JAX's own draws for every leaf would take as long to compile as a step.
    """
    shapes, structure = jax.tree.flatten(abstract_params(network))
    return jax.tree.unflatten(
        structure, [_bits(x, 1000 * seed + index) for index, x in enumerate(shapes)]
    )


def _bits(x: jax.ShapeDtypeStruct, seed: int) -> jax.Array:
    bits = jax.lax.iota(jnp.uint32, x.size) + jnp.uint32(seed * 40_503)
    for factor, shift in ((2_654_435_761, 15), (2_246_822_519, 13)):
        bits = bits * jnp.uint32(factor)
        bits = bits ^ (bits >> shift)
    return (0.34 * ((bits >> 8).astype(jnp.float32) / 2**24 - 0.5)).reshape(x.shape)


def _around_one(path: Any, x: jax.Array) -> jax.Array:
    return x + 1 if "scale" in jax.tree_util.keystr(path) else x


def run(
    sizes: tuple[int, int, int],
    directory: Path,
    restore_from: Path | None = None,
    *,
    brief: bool = False,
) -> dict:
    """Trains both stages and samples on one mesh; returns everything that the tests compare.

    With `brief`, it only distils, from a teacher that is not trained.
    """
    devices = jax.devices()[: int(np.prod(sizes))] if sizes == ONE else None
    mesh = make_mesh(MeshConfig(*sizes), devices)
    key = place_whole(jax.random.key(5), mesh)
    result: dict[str, Any] = {"mesh": list(sizes)}
    states, context = {}, None
    for stage in ("distill",) if brief else ("teacher", "distill"):
        if stage == "distill":
            teacher = (
                placed(noisy_params(DENOISER, 0), abstract_params(DENOISER), mesh)
                if brief
                else states["teacher"].params
            )
            context = {"teacher_params": teacher, "dt": jnp.float32(0.2)}
        state, step = start(stage, mesh, context)
        if stage == "teacher":
            result["initial"] = params_digest(state.params)
            result["parameters"] = sum(x.nbytes for x in jax.tree.leaves(state.params))
            result["specs"] = {p: list(x.sharding.spec) for p, x in flat_leaves(state).items()}
            result["shard"] = list(batch_at(0, mesh).addressable_shards[0].data.shape)
        result[f"{stage} bytes"] = sum(
            x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)
        )
        result["shards"] = {
            p: x.addressable_shards[0].data.nbytes for p, x in flat_leaves(state).items()
        }
        # Compiled once, to be looked at and to be run.
        compiled = step.lower(state, batch_at(0, mesh), key).compile()
        result[f"{stage} collectives"] = collectives(compiled, mesh)
        found = []
        for number in range(STEPS):
            state, metrics = compiled(state, batch_at(number, mesh), key)
            found.append(float(metrics["loss"]))
        result[f"{stage} losses"] = found
        states[stage] = state
    result["values"] = {p: norms(x) for p, x in flat_leaves(states["distill"]).items()}
    if not brief:
        result["texts"] = texts(mesh, states["distill"].params)
        result["batches"] = map_batches(_number, states["distill"].params, ROWS, 3).tolist()
        if sizes in COUPLED_MESHES:
            result["coupled"] = coupled(mesh, states["teacher"].params)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(states["distill"])
    result["digest"] = params_digest(states["distill"].params)
    if restore_from is not None:
        with Checkpoints(restore_from) as checkpoints:
            restored = checkpoints.restore(toy.abstract_like(states["distill"]))
        assert restored is not None
        result["restored"] = params_digest(restored[0].params)
        moved, metrics = compiled(restored[0], batch_at(STEPS, mesh), key)
        result["went on"] = float(metrics["loss"])
        result["went on by"] = int(moved.step)
    return result


def coupled(mesh: jax.sharding.Mesh, teacher_params: Any) -> dict[str, Any]:
    """A round of a coupled student, whose teacher makes trajectories and soft targets on the mesh."""
    network = CoupledDenoiser(CoupledConfig.of(DENOISER.config, COUPLED.noise))
    student = MaskedDiffusion(network, DIFFUSION.schedule)
    loss = coupled_loss(student, DIFFUSION, COUPLED, 1, jax.random.key(6), LENGTH)

    def init() -> Any:
        return jax.tree_util.tree_map_with_path(_around_one, scattered(network, 3))

    state = StateSpec(COUPLED.train, mesh).init(init, {"teacher_params": teacher_params})
    step, key = make_train_step(loss, COUPLED.train), place_whole(jax.random.key(7), mesh)
    losses = []
    for number in range(STEPS):
        index = np.arange(BATCH, dtype=np.int32) + number * BATCH
        batch = {"index": place_rows(lambda rows, index=index: index[rows], index.shape, mesh)}
        state, metrics = step(state, batch, key)
        losses.append(float(metrics["loss"]))
    return {
        "losses": losses,
        "values": {p: norms(x) for p, x in flat_leaves(state).items()},
        "noise": list(state.params["noise"]["up"]["kernel"].sharding.spec),
    }


def norms(x: jax.Array) -> list[float]:
    """Two numbers in which an error anywhere in `x` would show."""
    values = to_host(x).astype(np.float64).ravel()
    weights = np.cos(np.arange(values.size))
    return [float(np.linalg.norm(values)), float(values @ weights)]


def texts(mesh: jax.sharding.Mesh, params: Any) -> list[list[int]]:
    """Infillings of the same texts with the same keys."""
    tokens = np.random.default_rng(9).integers(0, 1000, (BATCH, LENGTH), dtype=np.int32)
    tokens[np.random.default_rng(10).random(tokens.shape) < 0.7] = DENOISER.mask_id
    x_init = place_rows(lambda rows: tokens[rows], tokens.shape, mesh)
    with use_mesh(mesh):
        return to_host(jax.jit(_texts)(params, x_init)).tolist()


@jax.jit
def _number(params: Any, index: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The number of its batch beside each row."""
    del params
    return jnp.stack([rows, jnp.full_like(rows, index)], axis=1)


def _texts(params: Any, x_init: jax.Array) -> jax.Array:
    return sample(DIFFUSION, params, jax.random.key(4), x_init, SamplerConfig(4))[0].x


def llama(sizes: tuple[int, int, int]) -> dict[str, Any]:
    """Logits and `norms` of gradients of a network with adapters and fewer key heads than query heads."""
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    init = functools.partial(init_adapters, LLAMA, LoraConfig(rank=2))
    boxed = jax.eval_shape(lambda key: LLAMA.init(key) | {ADAPTERS: init(key)}, jax.random.key(0))
    adapters = jax.tree.map(lambda x: x + 0.1, unbox(init(jax.random.key(1))))
    params = placed(noisy_params(LLAMA, 0) | {ADAPTERS: adapters}, boxed, mesh)

    def loss(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = LLAMA.logits(LLAMA.head_params(params), LLAMA.hidden(params, tokens))
        return jax.nn.log_softmax(logits)[..., 5].sum(), logits[..., :8]

    with use_mesh(mesh):
        tokens = batch_at(0, mesh) % LLAMA.config.vocab_size
        gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params, tokens)
    return {
        "logits": to_host(logits).tolist(),
        "gradient": {path: norms(x) for path, x in flat_leaves(gradient).items()},
        "specs": {path: list(x.sharding.spec) for path, x in flat_leaves(params).items()},
    }


def narrow(sizes: tuple[int, int, int]) -> dict[str, Any]:
    """The teacher's loss and `norms` of its gradient, with products of bfloat16 numbers."""
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    network = Denoiser(dataclasses.replace(DENOISER.config, compute_dtype="bf16_bf16_f32"))
    loss = teacher_loss(MaskedDiffusion(network, DIFFUSION.schedule), TEACHER)
    params = placed(noisy_params(network, 0), abstract_params(network), mesh)

    def mean(params: Any, tokens: jax.Array) -> jax.Array:
        found = loss(params, {}, tokens, jax.random.key(5))
        return found.total / found.weight

    with use_mesh(mesh):
        value, gradient = jax.jit(jax.value_and_grad(mean))(params, batch_at(0, mesh))
    return {
        "loss": float(value),
        "gradient": {path: norms(x) for path, x in flat_leaves(gradient).items()},
    }


def placed(params: Any, boxed: Any, mesh: jax.sharding.Mesh) -> Any:
    """Numbers where the rules say that boxed ones belong."""
    shardings = tree_shardings(boxed, RULES, mesh)
    return jax.tree.map(lambda x, s: place(np.asarray(x), s), params, shardings)


def collectives(compiled: Any, mesh: jax.sharding.Mesh) -> dict:
    """Bytes that one device puts into collectives, by the mesh axes that they cross."""
    cost = Module(
        compiled.as_text(), mesh.axis_names, tuple(mesh.shape.values()), lambda _: 1.0
    ).cost()
    found: dict[str, float] = {}
    for what, size in cost.data.items():
        name = f"{what.kind} over {'+'.join(what.axes)}"
        found[name] = found.get(name, 0.0) + size
    return found


def saved_by(sizes: tuple[int, int, int]) -> str:
    """The folder of a mesh's checkpoints."""
    return "x".join(map(str, sizes))


def main(directory: Path) -> list[dict]:
    """The results of all meshes; each also goes on from what the one before it saved."""
    results, before = [], None
    for sizes in (ONE, *MESHES):
        folder = directory / saved_by(sizes)
        results.append(run(sizes, folder, before))
        before = folder
    results.append({"mesh": "narrow"} | {str(sizes): narrow(sizes) for sizes in NARROW_MESHES})
    return [*results, {"mesh": "llama"} | {str(sizes): llama(sizes) for sizes in LLAMA_MESHES}]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
