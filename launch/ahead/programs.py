"""The programs of a run, lowered from abstract arguments for a mesh of devices that need not exist."""

import dataclasses
import functools
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.distillers import COUPLED, COUPLED_IDLM, ONE_ROUND
from experiments.settings import RunConfig
from experiments.stages import objective, one_round
from launch.ahead.distiller_flops import MASKED_SHARE, StepCost, step_cost, with_full
from launch.ahead.hlo_text import Instruction
from launch.ahead.networks import Planned
from sdtt_jax.causal.sampler import read_prompt, write_on
from sdtt_jax.config import changed
from sdtt_jax.diffusion import sampler
from sdtt_jax.diffusion.decoders import filling
from sdtt_jax.keys import seed_key
from sdtt_jax.networks import CausalConfig, flops
from sdtt_jax.networks.base import Network
from sdtt_jax.networks.config import LlamaConfig, TransformerConfig, of_same_size
from sdtt_jax.networks.kinds import network_of
from sdtt_jax.networks.lora import LoraConfig, frozen
from sdtt_jax.objectives import BASE, coupled_loss
from sdtt_jax.ops import head_loss, rows
from sdtt_jax.ops.categorical import Filters
from sdtt_jax.parallel.mesh import RULES, batch_pieces, check_batch_size, use_mesh
from sdtt_jax.parallel.placement import batch_sharding, replicated, tree_shardings, unbox
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.state import StateSpec, TrainState
from sdtt_jax.training.step import LossFn, make_train_step
from sdtt_jax.typing import Tree

KINDS = ("distill", "teacher", "sample")
# Compiled only when asked for: the sampler's causal rival, and the steps of the other distillers.
CAUSAL = "causal"
ALL = (*KINDS, CAUSAL, COUPLED, *ONE_ROUND)


@dataclasses.dataclass(frozen=True)
class Program:
    """One program, ready to be lowered."""

    kind: str  # one of `ALL`
    batch: int  # sequences, over all devices
    lower: Any  # lowers it
    # Bytes per device by part: "parameters", "optimizer", "average", "teacher", and "base" under adapters.
    state: dict[str, float]
    # Expected number of iterations of each loop over chunks of rows, by the name of its scope.
    trips: dict[str, float]
    flops: float  # unavoidable FLOPs of one device
    recomputed: float  # further FLOPs of one device, which the fast path chooses to spend
    tokens: int  # tokens per run of the program, over all devices

    def trips_of(self, loop: Instruction) -> float:
        """Expected iterations of a loop whose number of iterations depends on the data."""
        for scope, count in self.trips.items():
            if scope in loop.attributes:
                return count
        return 1.0


def kinds_of(config: RunConfig) -> tuple[str, ...]:
    """The `KINDS` of programs that a run has: a teacher that is loaded takes no steps."""
    return tuple(kind for kind in KINDS if kind != "teacher" or not config.teacher.checkpoint)


def check_kinds(kinds: Collection[str], config: RunConfig) -> None:
    """Raises `ConfigError` for programs of distillers that a run with this config could not train.

    A config itself checks only the distillers that it names.
    """
    first = (COUPLED,) if {COUPLED, COUPLED_IDLM} & {*kinds} else ()
    if trained := (*first, *(kind for kind in ONE_ROUND if kind in kinds)):
        changed(config, distillers=trained)


def build(kind: str, config: RunConfig, mesh: Mesh, batch: int, num_steps: int) -> Program:
    """A program, one of `ALL`, of a run on a mesh of any devices; `batch` counts sequences over all of them.

    Raises `ConfigError` if the mesh does not divide a size. `num_steps` is the sampler's.
    """
    planned = Planned(config)
    train = _train_of(kind, config)
    check_batch_size(batch, mesh, train.microbatches if train else 1, "the global batch")
    if kind == CAUSAL:
        return _causal(planned.denoiser, mesh, batch)
    if train is None:
        return _sampler(planned, mesh, batch, num_steps)
    return _trained(kind, _step(kind, planned, mesh, batch), train, mesh, batch)


class _Step(NamedTuple):
    """A training step."""

    denoiser: Any
    loss: LossFn
    state: TrainState
    batch: Tree
    cost: StepCost
    base: Tree  # frozen parameters under adapters


def _step(kind: str, planned: Planned, mesh: Mesh, batch: int) -> _Step:
    config, denoiser = planned.config, planned.denoiser
    distills, share, lora = kind == "distill", MASKED_SHARE, LoraConfig()
    spec = StateSpec(getattr(config, kind).train, mesh)
    tokens: Tree = _tokens(batch, denoiser.config, mesh)
    if kind in ONE_ROUND:
        loss = one_round.loss_of(kind, planned)
        state = one_round.abstract_state(kind, planned, spec)
        return _Step(denoiser, loss, state, tokens, step_cost(kind, config, batch), {})
    if kind == COUPLED:
        denoiser, share = planned.coupled, with_full(config.coupled.full_share)
        diffusion, key = planned.diffusion_of(denoiser), seed_key(0)
        stage, made, context = config.coupled, not config.coupled.num_trajectories, {}
        if made:  # by the step itself, which then needs the teacher
            context = {"teacher_params": unbox(jax.eval_shape(planned.denoiser.init, key))}
        # A run reads the noise that is stored with its texts; the program compiled here draws it.
        stated = dataclasses.replace(stage, hindsight=stage.hindsight and made)
        loss = coupled_loss(diffusion, planned.diffusion, stated, 1, key, config.data.length)
        state = spec.abstract(functools.partial(denoiser.init, key), context)
        index = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=batch_sharding(mesh))
        tokens = {"index": index} | ({"tokens": tokens} if stage.hindsight or not made else {})
    elif distills:
        lora, loss = config.distill.lora, objective.distill_objective(planned)
        state = objective.abstract_round(planned, 1, spec)
    else:
        lora, loss = config.teacher.lora, objective.teacher_objective(planned)
        state = spec.abstract(functools.partial(objective.init_params, planned, lora))
        if planned.was_causal:
            opened = jax.ShapeDtypeStruct((batch,), jnp.float32, sharding=batch_sharding(mesh))
            tokens = {"tokens": tokens, "open": opened}
    base: Tree = {}
    if lora.rank:
        base = _abstract_params(denoiser, mesh, lora)
        state = state.replace(context=state.context | {BASE: base})
    sizes = denoiser.config
    masked = share * batch * sizes.length
    needed = (
        flops.distill_flops(
            sizes,
            batch,
            masked,
            num_distill_steps=config.distill.num_distill_steps,
            num_trajectories=config.distill.num_trajectories,
            frozen=bool(lora.rank),
        )
        if distills
        else flops.teacher_flops(sizes, batch, masked, frozen=bool(lora.rank))
    )
    return _Step(denoiser, loss, state, tokens, StepCost(needed, share), base)


def _trained(kind: str, made: _Step, train: TrainConfig, mesh: Mesh, batch: int) -> Program:
    state, base, sizes, cost = made.state, made.base, made.denoiser.config, made.cost
    step = make_train_step(made.loss, train)
    shard = _rows_per_shard(batch // train.microbatches, sizes, mesh)
    chunk = rows.chunk_size(shard, made.denoiser.padded_vocab, head_loss.CHUNKS.parts)
    drawing = rows.chunk_size(shard, made.denoiser.padded_vocab, filling.CHUNKS.parts)
    return Program(
        kind=kind,
        batch=batch,
        lower=lambda: step.lower(state, made.batch, _key(mesh)),
        state={
            "parameters": _bytes_per_device(state.params),
            "optimizer": _bytes_per_device(state.opt_state),
            "average": _bytes_per_device(state.ema_params),
            "teacher": _bytes_per_device(state.context) - _bytes_per_device(base),
        }
        | ({"base": _bytes_per_device(base)} if base else {}),
        trips={
            head_loss.CHUNKS.scope: math.ceil(cost.loss_share * shard / chunk),
            filling.CHUNKS.scope: max(1.0, math.ceil(cost.drawn_share * shard / drawing)),
        },
        flops=cost.flops / mesh.size,
        recomputed=cost.trained_calls * flops.recomputed_flops(sizes, batch) / mesh.size,
        tokens=batch * sizes.length,
    )


def _sampler(planned: Planned, mesh: Mesh, batch: int, num_steps: int) -> Program:
    denoiser = planned.denoiser
    sizes, time_grid = denoiser.config, planned.config.evaluation.time_grid
    settings = sampler.SamplerConfig(num_steps=num_steps, time_grid=time_grid)
    params, tokens = _abstract_params(denoiser, mesh), _tokens(batch, sizes, mesh)
    write = functools.partial(sampler.sample, planned.diffusion, config=settings)
    shard = _rows_per_shard(batch, sizes, mesh)
    chunk = rows.chunk_size(shard, denoiser.padded_vocab, filling.CHUNKS.parts)

    def lower() -> Any:
        with use_mesh(mesh):
            return jax.jit(write).lower(params, _key(mesh), tokens)

    return Program(
        kind="sample",
        batch=batch,
        lower=lower,
        state={"parameters": _bytes_per_device(params)},
        trips={filling.CHUNKS.scope: math.ceil(shard / num_steps / chunk)},
        flops=flops.sample_flops(sizes, batch, num_steps) / mesh.size,
        # The first call, which is counted at all positions, and the last, for tokens still masked at the end,
        # which few runs need.
        recomputed=2 * flops.block_flops(sizes, batch) / mesh.size,
        tokens=batch * sizes.length,
    )


def _causal(denoiser: Any, mesh: Mesh, batch: int) -> Program:
    """Token-by-token generation with a key-value cache, by a causal model of the denoiser's sizes."""
    sizes = denoiser.config
    kind: Any = LlamaConfig if isinstance(sizes, LlamaConfig) else CausalConfig
    network = network_of(of_same_size(kind, sizes))
    params = _abstract_params(network, mesh)
    prompt = jax.ShapeDtypeStruct((batch, 1), jnp.int32, sharding=batch_sharding(mesh))
    given = network, params, _key(mesh), Filters(), None

    def lower() -> Any:
        # Of the two programs the larger: what the other one reads is BOS alone.
        with use_mesh(mesh):
            begun = read_prompt.eval_shape(*given, prompt, sizes.length)
            return write_on.lower(*given, *begun, sizes.length)

    needed = flops.judge_flops(sizes, batch)
    # A step attends to the whole cache, half of which is not written yet on average.
    unused = flops.block_flops(sizes, batch) + flops.head_flops(sizes, batch * sizes.length)
    return Program(
        kind=CAUSAL,
        batch=batch,
        lower=lower,
        state={"parameters": _bytes_per_device(params)},
        trips={},
        flops=needed / mesh.size,
        recomputed=(unused - needed) / mesh.size,
        tokens=batch * sizes.length,
    )


def _abstract_params(network: Network, mesh: Mesh, lora: LoraConfig = LoraConfig()) -> Tree:
    boxed = jax.eval_shape(network.init, seed_key(0))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(functools.partial(frozen, config=lora), unbox(boxed)),
        tree_shardings(boxed, RULES, mesh),
    )


def state_of(kind: str, config: RunConfig, mesh: Mesh) -> dict[str, float]:
    """Bytes per device of the parts of a program's state; nothing is compiled."""
    return build(kind, config, mesh, least_batch(kind, config, mesh), 1).state


def least_batch(kind: str, config: RunConfig, mesh: Mesh) -> int:
    """The smallest batch, over all devices, that `build` takes; the others are its multiples."""
    train = _train_of(kind, config)
    return batch_pieces(mesh) * (train.microbatches if train else 1)


def _train_of(kind: str, config: RunConfig) -> TrainConfig | None:
    return None if kind in ("sample", CAUSAL) else getattr(config, kind).train


def _rows_per_shard(batch: int, sizes: TransformerConfig, mesh: Mesh) -> int:
    return batch * sizes.length // batch_pieces(mesh)


def _tokens(batch: int, sizes: TransformerConfig, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, sizes.length), jnp.int32, sharding=batch_sharding(mesh))


def _key(mesh: Mesh) -> jax.ShapeDtypeStruct:
    key = jax.eval_shape(lambda: seed_key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))


def _bytes_per_device(tree: Tree) -> float:
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )
