"""Optimizers and learning-rate schedules from one frozen config."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from sdtt_jax.config import at_least, one_of, positive, require, whole, within
from sdtt_jax.trees import leaf_name
from sdtt_jax.typing import Params

NAMES = ("adamw", "adam", "muon")
SCHEDULES = ("constant", "linear", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated. The defaults are the SDTT paper's recipe (arXiv 2410.21035, appendix).

    Attributes:
      name: "adamw" | "adam" | "muon". Muon (Jordan, 2024) updates the matrices inside the blocks, also those
        of adapters, Adam with Nesterov's momentum everything else, as `optax.contrib.muon` has it.
      learning_rate: peak rate, reached after `warmup_steps`.
      schedule: what follows the warm-up: "constant", or "linear" / "cosine" decay to zero at
        `num_steps`.
      warmup_steps: updates of the warm-up, during which update n (counted from 0) has the rate
        `learning_rate * n / warmup_steps`.
      b1, b2, eps: Adam's moments and epsilon (also those of Muon's Adam part).
      weight_decay: decoupled, scaled by the learning rate, on matrices only, also those of adapters
        (`decays`); with "muon", on those that Muon updates; "adam" allows none.
      clip_norm: bound on the global norm of the gradient; 0 for no clipping.
      adam_learning_rate: with "muon", the peak rate of Adam's part, on the same schedule; 0 means
        `learning_rate`.
      momentum: with "muon", the decay of its momentum.
    """

    name: str = "adamw"
    learning_rate: float = 6e-5
    schedule: str = "constant"
    warmup_steps: int = 500
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    adam_learning_rate: float = 0.0
    momentum: float = 0.95

    def __post_init__(self) -> None:
        one_of(self, name=NAMES, schedule=SCHEDULES)
        positive(self, "learning_rate", "eps")
        whole(0, self, "warmup_steps")
        at_least(0, self, "weight_decay", "clip_norm", "adam_learning_rate")
        within("[0, 1)", self, "b1", "b2", "momentum")
        require(
            self.name != "adam" or self.weight_decay == 0,
            f"weight_decay={self.weight_decay} needs name='adamw' or 'muon'; 'adam' has none.",
        )
        require(
            self.name == "muon" or self.adam_learning_rate == 0,
            f"adam_learning_rate={self.adam_learning_rate} needs name='muon'.",
        )
        require(
            self.name == "muon" or self.momentum == OptimizerConfig.momentum,
            f"momentum={self.momentum} needs name='muon'; the momentum of {self.name!r} is b1.",
        )


def learning_rate_schedule(
    config: OptimizerConfig, num_steps: int, peak: float | None = None
) -> optax.Schedule:
    """Learning rate as a function of the update's number, counted from 0.

    Args:
      config: the schedule's kind and warm-up.
      num_steps: updates in all; the decaying schedules reach zero there.
      peak: rate after the warm-up, `config.learning_rate` if None.

    Returns:
      `count: [] int32 -> [] float32`.
    """
    peak = config.learning_rate if peak is None else peak
    if config.schedule == "constant":
        after: optax.Schedule = optax.constant_schedule(peak)
    else:
        require(
            config.warmup_steps < num_steps,
            f"warmup_steps={config.warmup_steps} leaves no steps of num_steps={num_steps} for the "
            f"{config.schedule} decay; reduce it.",
        )
        remaining = num_steps - config.warmup_steps
        if config.schedule == "linear":
            after = optax.linear_schedule(peak, 0.0, remaining)
        else:
            after = optax.cosine_decay_schedule(peak, remaining)
    if config.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def greatest_share(config: OptimizerConfig, num_steps: int) -> float:
    """The greatest learning rate of a training as a share of the peak, from 0 to 1.

    Below 1 the warm-up outlasts the training, which only a constant schedule allows.

    Args:
      config: the schedule's kind and warm-up.
      num_steps: updates in all.
    """
    return min(1.0, (num_steps - 1) / config.warmup_steps) if config.warmup_steps else 1.0


def make_optimizer(
    config: OptimizerConfig, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """The optimizer: clip by global norm, then AdamW, Adam or Muon.

    Args:
      config: name, rates and bounds.
      num_steps: updates in all, for the decaying schedules.

    Returns:
      An optax transformation of gradients shaped like the parameters. If the caller already
      knows their global norm, passing it to `update` as `grad_norm` saves clipping a pass over them.
      Its state and updates are float32 also for narrower parameters.
    """
    rate = learning_rate_schedule(config, num_steps)
    if config.name == "muon":
        adam_peak = config.adam_learning_rate or config.learning_rate
        rule = optax.contrib.muon(
            rate,
            beta=config.momentum,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            # Outside the blocks the only matrices are embedding, head and conditioning; under Muon they
            # are usually left undecayed.
            adam_weight_decay=0.0,
            adam_learning_rate=learning_rate_schedule(config, num_steps, adam_peak),
            muon_weight_dimension_numbers=muon_dimension_numbers,
            # Scales an update of any shape to the RMS of an AdamW update (arXiv 2502.16982, sec.
            # 2.2), so that learning rates and weight decay carry over between shapes.
            consistent_rms=0.2,
        )
    else:
        rule = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decays,
        )
    if config.clip_norm:
        rule = optax.chain(clip_by_norm(config.clip_norm), rule)
    return _in_float32(rule)


def _in_float32(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The rule for parameters of any dtype: in bfloat16 a second moment grows, but never decays again."""
    inner = optax.with_extra_args_support(rule)

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)

    def update(updates: Any, state: Any, params: Any = None, **others: Any) -> tuple[Any, Any]:
        return inner.update(wide(updates), state, wide(params), **others)

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(wide(params)), update)


def num_updates(opt_state: Any) -> jax.Array:
    """The count that gives the learning rate: all updates of the optimizer, also those of earlier rounds."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    # Muon has a schedule state for each of its parts; all hold the same count.
    nodes = jax.tree.leaves(opt_state, is_leaf=is_schedule)
    return next(node.count for node in nodes if is_schedule(node))


def global_norm(tree: Params) -> jax.Array:
    """The norm of all leaves together, `[] float32`: a sum of bfloat16 loses what is small beside it."""
    return optax.tree.norm(optax.tree.cast(tree, jnp.float32))


def clip_by_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` whose `update` also accepts the norm, as `grad_norm`.

    Args:
      max_norm: gradients of a larger global norm are scaled down to it.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, grad_norm: Any = None, **others: Any
    ) -> tuple[Any, Any]:
        del params, others
        norm = global_norm(updates) if grad_norm is None else grad_norm

        def clipped(g: jax.Array) -> jax.Array:
            return jnp.where(norm < max_norm, g, g / norm.astype(g.dtype) * max_norm)

        return jax.tree.map(clipped, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def decays(params: Params) -> Params:
    """Bool tree: which leaves weight decay applies to, the matrices.

    Kernels and embeddings are matrices; biases, scales of norms and values of noise are not. Of leaves with
    other names, such as adapters and those of a user's own network, the ones with two axes or more are
    matrices, not counting axis 0 of what is under `blocks`, which counts layers.
    """
    return jax.tree_util.tree_map_with_path(_decays, params)


def _decays(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    names = leaf_name(path).split("/")
    if names[-1] in ("kernel", "embedding"):
        return True
    rank = jnp.ndim(leaf) - ("blocks" in names)
    return rank >= 2 and names[-1] not in ("bias", "scale", "values")


def muon_dimension_numbers(params: Params) -> Params:
    """Which axes of each leaf Muon orthogonalises; None where Adam is used.

    Muon takes the kernels of the stacked blocks except those of adaLN, and their adapters
    (`a: [layers, in, rank]`, `b: [layers, rank, out]`); axis 0 counts layers:

      [layers, in, out]: one matrix per layer;
      [layers, heads, kv, embed] (attention's output): heads and kv together are the input;
      [layers, embed, heads, kv] (query, key or value by itself): they are the output;
      [layers, embed, 3, heads, kv] (query, key, value): three matrices per layer, since the three
        live on different scales and orthogonalising them jointly would tie them.

    The axes not named are batch axes (`optax.contrib.MuonDimensionNumbers`).

    Raises:
      ConfigError: there is no such kernel, so that Adam would update everything.
    """
    axes = jax.tree_util.tree_map_with_path(_muon_axes, params)
    require(
        # None is no leaf.
        bool(jax.tree.leaves(axes)),
        "name='muon' updates leaves named kernel, a or b under a group named blocks, with layers as their "
        "first axis, and these parameters have none; name them so, or take name='adamw'.",
    )
    return axes


def _muon_axes(path: tuple[Any, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
    names = leaf_name(path).split("/")
    if "blocks" not in names or names[-1] not in ("kernel", "a", "b") or "adaln" in names:
        return None
    match jnp.ndim(leaf):
        case 3:
            return MuonDimensionNumbers((1,), (2,))
        case 4 if "attn_out" in names:
            return MuonDimensionNumbers((1, 2), (3,))
        case 4:
            return MuonDimensionNumbers((1,), (2, 3))
        case 5:
            return MuonDimensionNumbers((1,), (3, 4))
    return None
