"""One training step: gradients of a weighted mean, clipped, applied, averaged, guarded."""

import contextlib
import ctypes
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdtt_jax.config import require
from sdtt_jax.errors import ConfigError
from sdtt_jax.parallel.mesh import mesh_of, use_mesh
from sdtt_jax.parallel.placement import replicated
from sdtt_jax.training.config import TrainConfig
from sdtt_jax.training.optimizers import (
    global_norm,
    learning_rate_schedule,
    make_optimizer,
    num_updates,
)
from sdtt_jax.training.state import TrainState, ema_decay_at, in_32_bits
from sdtt_jax.trees import flat_leaves
from sdtt_jax.typing import Tree

Metrics = dict[str, jax.Array]


class Mean(NamedTuple):
    """A metric that is a mean with a weight of its own, not with that of the loss."""

    total: jax.Array  # `[] float32`, sum over what counts for the metric
    weight: jax.Array  # `[] float32`, how much counts


class Loss(NamedTuple):
    """What a loss function returns; the step minimises sum(total) / sum(weight) over the batch."""

    total: jax.Array  # `[] float32`, sum of the loss over what counts (tokens, masked positions)
    weight: jax.Array  # `[] float32`, how much counts; no gradient flows through it
    # Name to `[] float32`, a mean over that weight, or to a `Mean` over a weight of its own.
    metrics: dict[str, Any]


class Gradient(NamedTuple):
    """The mean gradient of a batch, not divided yet.

    The optimizer's loops over the parameters do the division. Done before them, at the start of the branch
    that accepts a step, it would read and write all gradients once more.
    """

    total: Tree  # tree, the gradient of the sum
    scale: jax.Array  # `[] float32`, the factor that makes `total` the mean
    norm: jax.Array  # `[] float32`, the global norm of the mean

    def mean(self) -> Tree:
        """The tree of means."""
        return _scaled(self.total, self.scale)


# Spikes are measured against the running mean of the loss: its decay (ramped up like that of the parameters'
# average), and the number of accepted steps that it must have seen.
SPIKE_DECAY, SPIKE_WARMUP = 0.98, 20

LossFn = Callable[[Tree, Tree, Tree, jax.Array], Loss]


class TrainStep:
    """The compiled step, `step(state, batch, key) -> (state, metrics)`; `state` is donated, all of it.

    The new state has exactly the placement of the old one, and its context is passed on in the same buffers.
    Metrics are `[] float32` arrays on the device: loss, grad_norm (before clipping), param_norm, lr,
    rejected (0 or 1), rejected_in_a_row, and the loss function's own.
    """

    def __init__(self, body: Callable[..., Any]):
        self.body = body
        self._jitted = functools.lru_cache(maxsize=8)(self._jit)
        self._compiled: set[Any] = set()

    @in_32_bits()
    def __call__(
        self, state: TrainState, batch: Tree, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        with use_mesh(mesh_of(state.step)):
            step = self._for(state)
            if step not in self._compiled and not getattr(jax.config, "jax_disable_jit", False):
                # `jit` caches what this compiles; the call below runs it.
                step.lower(state, batch, key).compile()
                give_back_memory()
                self._compiled.add(step)
            return step(state, batch, key)

    @in_32_bits()
    def lower(self, state: TrainState, batch: Tree, key: Any) -> Any:
        """The lowered step, from arrays or from `jax.ShapeDtypeStruct`s with shardings."""
        with use_mesh(mesh_of(state.step)):
            return self._for(state).lower(state, batch, key)

    def _for(self, state: TrainState) -> Any:
        leaves, structure = jax.tree.flatten(state)
        return self._jitted(structure, tuple(leaf.sharding for leaf in leaves))

    def _jit(self, structure: Any, shardings: tuple[Any, ...]) -> Any:
        # Without out_shardings the compiler could place the new state elsewhere than the old one,
        # which would recompile the second step and break donation.
        out = (jax.tree.unflatten(structure, shardings), replicated(shardings[0].mesh))
        return jax.jit(self.body, donate_argnames="state", out_shardings=out)


def give_back_memory() -> None:
    """On Linux, returns memory that the compiler has freed to the system, before a program allocates its own.

    Otherwise glibc keeps it: a distillation step at 12 x 768 then peaks at 5.62 GB instead of 5.25.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        ctypes.CDLL(None).malloc_trim(0)


def make_train_step(loss_fn: LossFn, config: TrainConfig) -> TrainStep:
    """Compiles `loss_fn` into a training step.

    Args:
      loss_fn: `(params, context, batch, key) -> Loss`, pure.
      config: optimizer, microbatches, moving average; the config of the state's `StateSpec`.

    Returns:
      `TrainStep`. `batch` is a tree of arrays `[batch, ...]`; `key` a typed key of the stage and round:
      the loss gets `fold_in(fold_in(key, state.step), microbatch)`.

    Raises:
      ConfigError: when the step is first called: `loss_fn` returns something else, or a metric with the name
        of one of the step's, or the state was made for another config.
    """
    rate = learning_rate_schedule(config.optimizer, config.num_steps)
    optimizer = make_optimizer(config.optimizer, config.num_steps)

    @jax.named_scope("optimizer")
    def accept(state: TrainState, gradient: Gradient, loss: jax.Array) -> TrainState:
        updates, opt_state = optimizer.update(
            gradient.mean(), state.opt_state, state.params, grad_norm=gradient.norm
        )
        params = optax.apply_updates(state.params, updates)
        ema_params, ema_count = state.ema_params, state.ema_count + 1
        if ema_params is not None:
            decay = ema_decay_at(ema_count, config.ema_decay)
            ema_params = optax.incremental_update(params, ema_params, 1 - decay)
        return state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=ema_params,
            ema_count=ema_count,
            rejected_in_a_row=jnp.zeros_like(state.rejected_in_a_row),
            loss_mean=None if state.loss_mean is None else _loss_mean(state, loss),
        )

    def reject(state: TrainState, gradient: Gradient, loss: jax.Array) -> TrainState:
        del gradient, loss
        return state.replace(
            step=state.step + 1,
            rejected=state.rejected + 1,
            rejected_in_a_row=state.rejected_in_a_row + 1,
        )

    def body(state: TrainState, batch: Tree, key: jax.Array) -> tuple[TrainState, Metrics]:
        _check_state(state, config)
        key = jax.random.fold_in(key, state.step)
        gradient, loss, own = _mean_gradient(
            loss_fn, state.params, state.context, batch, key, config.microbatches
        )
        # The norm is a sum over every leaf, so it is finite only if every leaf is; the optimizer's update
        # is then finite too. Deciding before the optimizer runs, and by a branch rather than by choosing
        # between two states, updates each leaf in place: 1.4 GB of temporaries at 12 x 768, not 2.7.
        good = jnp.isfinite(loss) & jnp.isfinite(gradient.norm)
        if config.spike_factor:
            good &= ~_is_spike(state, loss, config.spike_factor)
        # The context bypasses the branch, so it passes from the donated state to the new one uncopied.
        chosen = jax.lax.cond(good, accept, reject, state.replace(context={}), gradient, loss)
        chosen = chosen.replace(context=state.context)
        metrics = {
            "loss": loss,
            "grad_norm": gradient.norm,
            "param_norm": global_norm(chosen.params),
            "lr": jnp.asarray(rate(num_updates(state.opt_state)), jnp.float32),
            "rejected": 1.0 - good.astype(jnp.float32),
            "rejected_in_a_row": chosen.rejected_in_a_row.astype(jnp.float32),
        }
        for name in sorted(own.keys() & metrics.keys()):
            raise ConfigError(f"The loss's metric {name!r} is one of the step's own; rename it.")
        return chosen, own | metrics

    return TrainStep(body)


def _check_state(state: TrainState, config: TrainConfig) -> None:
    """Raises `ConfigError` unless the state has the averages that the step's config asks for."""
    for field, kept in (("ema_decay", state.ema_params), ("spike_factor", state.loss_mean)):
        asked = getattr(config, field)
        require(
            bool(asked) == (kept is not None),
            f"The step's config has {field}={asked}, and that of the state's StateSpec has "
            f"{'none' if asked else 'one'}; give both the same config.",
        )


def _is_spike(state: TrainState, loss: jax.Array, factor: float) -> jax.Array:
    known = state.step - state.rejected >= SPIKE_WARMUP
    # If the mean is not positive, no multiple of it lies above the usual loss.
    return known & (state.loss_mean > 0) & (loss > factor * state.loss_mean)


def _loss_mean(state: TrainState, loss: jax.Array) -> jax.Array:
    accepted = state.step - state.rejected
    decay = ema_decay_at(accepted + 1, SPIKE_DECAY)
    return jnp.where(accepted == 0, loss, decay * state.loss_mean + (1 - decay) * loss)


def _mean_gradient(
    loss_fn: LossFn, params: Tree, context: Tree, batch: Tree, key: jax.Array, microbatches: int
) -> tuple[Gradient, jax.Array, Metrics]:
    """Gradient and value of sum(total) / sum(weight), and the weighted means of the metrics.

    Totals and weights are summed over microbatches and divided once, so a microbatch in which little
    counts weighs little: the mean is that of the whole batch.
    """

    def objective(
        p: Tree, piece: Tree, index: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, dict[str, Any]]]:
        returned = loss_fn(p, context, piece, jax.random.fold_in(key, index))
        total, weight, metrics = _checked_loss(returned)
        weight = jnp.asarray(weight, jnp.float32)
        # A microbatch in which nothing counts has no mean (0/0), and adds nothing to that of the batch.
        weighted = {
            name: value if isinstance(value, Mean) else jnp.where(weight > 0, value * weight, 0.0)
            for name, value in (metrics or {}).items()
        }
        return jnp.asarray(total, jnp.float32), (weight, weighted)

    gradient = jax.value_and_grad(objective, has_aux=True)
    if microbatches == 1:
        sums = gradient(params, batch, jnp.int32(0))
    else:
        pieces = jax.tree.map(lambda x: _microbatch(x, microbatches), batch)

        def add(carry: Tree, inputs: tuple[Tree, jax.Array]) -> tuple[Tree, None]:
            found = gradient(params, *inputs)
            return jax.tree.map(lambda total, x: total + x.astype(total.dtype), carry, found), None

        indices = jnp.arange(microbatches, dtype=jnp.int32)
        first = jax.tree.map(lambda x: x[0], pieces)
        shapes = jax.eval_shape(gradient, params, first, indices[0])
        # In bfloat16 a sum stands still at 256 times what is added.
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes
        )
        sums, _ = jax.lax.scan(add, zeros, (pieces, indices))
    (total, (weight, weighted)), grads = sums
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    # A batch in which nothing counts gives gradient zero rather than 0/0.
    scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
    return (
        Gradient(grads, scale, global_norm(_scaled(grads, scale))),
        total * scale,
        {name: _mean(value, scale) for name, value in weighted.items()},
    )


def _checked_loss(returned: Any) -> Loss:
    """What a loss function returned; `ConfigError` unless that is a `Loss` of single numbers."""
    parts = len(returned) if isinstance(returned, tuple) else 1
    require(
        parts == len(Loss._fields),
        "The loss function must return Loss(total, weight, metrics), with sums over the batch; it returned "
        f"{'one value' if parts == 1 else f'a tuple of {parts}'}.",
    )
    loss = Loss(*returned)
    for name, leaf in flat_leaves(loss).items():
        require(
            jnp.ndim(leaf) == 0,
            f"The loss's {name} must be a single number, not of shape {list(jnp.shape(leaf))}; sum it over "
            "the batch.",
        )
    return loss


def _mean(value: jax.Array | Mean, scale: jax.Array) -> jax.Array:
    if isinstance(value, Mean):
        return value.total / jnp.where(value.weight > 0, value.weight, 1.0)
    return value * scale


def _scaled(grads: Tree, scale: jax.Array) -> Tree:
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)


def _microbatch(x: jax.Array, microbatches: int) -> jax.Array:
    """`[batch, ...] -> [microbatches, batch / microbatches, ...]`, example i to microbatch i mod m.

    Strided rather than contiguous, so that every microbatch stays spread over all devices.
    """
    require(
        x.shape[0] % microbatches == 0,
        f"microbatches={microbatches} does not divide a batch of {x.shape[0]}; take a divisor.",
    )
    split = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
    return jnp.swapaxes(split, 0, 1)
