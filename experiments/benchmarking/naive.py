"""The naive twin: the reference's algorithm written plainly in JAX, on the same parameters.

It stores `[batch, length, vocab]` log-probabilities and targets, applies the head at every position, calls
the network at every step, and draws a token at every position from the whole vocabulary. It is not for
use: the lean path is measured against it (`experiments.benchmark`), and tests take it as their oracle.

Parameters are those of `Denoiser.init`, unboxed. `vocab` is the vocabulary with MASK, without padding.
"""

from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.diffusion import nelbo
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import SAMPLING_EPS
from sdtt_jax.diffusion.nelbo import NelboConfig
from sdtt_jax.diffusion.sampler import SamplerState
from sdtt_jax.distillation import loss as distillation
from sdtt_jax.distillation.divergence import DIVERGENCES
from sdtt_jax.distillation.rounds import DistillConfig
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.networks.causal import CausalNetwork
from sdtt_jax.training.step import Loss, LossFn, Mean
from sdtt_jax.typing import Params

# Finite, like the reference's, so that 0 * log 0 is 0 in values and in gradients.
IMPOSSIBLE = -1e6
TIME_FEATURES = 256


def forward(
    config: DenoiserConfig, params: Params, tokens: jax.Array, sigma: jax.Array | None = None
) -> jax.Array:
    """The network, head included: raw logits `[batch, length, vocab]` float32.

    Of the config, `remat` is ignored (everything is stored), and so is the narrower dtype of products.
    `tokens` is `[batch, length]` int32, MASK included; `sigma`, the total noise, is `[batch]` float32, and is
    used only if the config says `time_conditioned`.
    """
    batch, length = tokens.shape
    dtype = jnp.dtype(config.numerics.dtype)
    if sigma is None or not config.time_conditioned:
        sigma = jnp.zeros(batch, jnp.float32)
    condition = _time_embedding(params["sigma_map"], sigma).astype(dtype)
    cos, sin = _rotary(length, config.head_dim)

    def block(x: jax.Array, p: Params) -> tuple[jax.Array, None]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = _modulation(p["adaln"], condition)
        y = _layer_norm(p["norm1"], x) * (1 + scale_a) + shift_a
        qkv = jnp.einsum("ble,eihd->iblhd", y, p["attn_qkv"]["kernel"].astype(dtype))
        mixed = jax.nn.dot_product_attention(
            _rotate(qkv[0], cos, sin), _rotate(qkv[1], cos, sin), qkv[2]
        )
        y = jnp.einsum("blhd,hde->ble", mixed, p["attn_out"]["kernel"].astype(dtype))
        x = x + gate_a * y
        y = _layer_norm(p["norm2"], x) * (1 + scale_m) + shift_m
        y = jax.nn.gelu(_linear(p["mlp"]["up"], y), approximate=True)
        return x + gate_m * _linear(p["mlp"]["down"], y), None

    x = params["embed"]["embedding"].astype(dtype)[tokens]
    x, _ = jax.lax.scan(block, x, params["blocks"])
    shift, scale = _modulation(params["final"]["adaln"], condition)
    x = _layer_norm(params["final"]["norm"], x) * (1 + scale) + shift
    vocab = config.mask_id + 1
    head = {name: leaf[..., :vocab] for name, leaf in params["head"]["linear"].items()}
    return _linear(head, x).astype(jnp.float32)


def log_probs(
    config: DenoiserConfig, params: Params, x_t: jax.Array, sigma: jax.Array
) -> jax.Array:
    """SUBS log-probabilities of x_0 at every position: `[batch, length, vocab]` float32.

    MASK is impossible, and a position that is not masked in `x_t: [batch, length]` is certain.
    """
    logits = forward(config, params, x_t, sigma)
    vocab = jnp.arange(logits.shape[-1])
    # As the reference writes it; `log_softmax` rounds MASK's entry twice, which mse and log-l1 would see.
    logits = logits + jnp.where(vocab == config.mask_id, IMPOSSIBLE, 0.0)
    masked = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    certain = jnp.where(vocab == x_t[..., None], 0.0, IMPOSSIBLE)
    return jnp.where((x_t == config.mask_id)[..., None], masked, certain)


def reverse_log_probs(
    log_p_x0: jax.Array, move_chance_t: jax.Array, move_chance_s: jax.Array, mask_id: int
) -> jax.Array:
    """The whole categorical q(x_s | x_t) of masked positions (MDLM, arXiv 2406.07524, equation 6).

    Shaped like `log_p_x0`, from `log_probs`; MASK's share is `move_chance_s / move_chance_t`, `[batch]` each.
    """
    stays = (move_chance_s / move_chance_t)[:, None, None]
    is_mask = jnp.arange(log_p_x0.shape[-1]) == mask_id
    return jnp.where(is_mask, jnp.log(stays), log_p_x0 + jnp.log1p(-stays))


def reverse_step(
    diffusion: MaskedDiffusion,
    params: Params,
    key: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    s: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One reverse step from t to s < t: `x_s: [batch, length]` int32, and the result of `log_probs`.

    `x_t` is `[batch, length]` int32, `t` and `s` are `[batch]` float32; `s` is clamped at 0, where everything
    is revealed.
    """
    schedule, mask_id = diffusion.schedule, diffusion.mask_id
    log_p_x0 = log_probs(_sizes(diffusion), params, x_t, schedule.sigma(t))
    # Some schedules mask something even at time 0.
    move_chance_s = jnp.where(s <= 0, 0.0, schedule.move_chance(jnp.maximum(s, 0.0)))
    log_q = reverse_log_probs(log_p_x0, schedule.move_chance(t), move_chance_s, mask_id)
    # "high": the default mode truncates the Gumbel tail. The lean path draws in the same mode.
    drawn = jax.random.categorical(key, log_q, axis=-1, mode="high")
    return jnp.where(x_t == mask_id, drawn, x_t).astype(jnp.int32), log_p_x0


def sample(
    diffusion: MaskedDiffusion, params: Params, key: jax.Array, x_init: jax.Array, num_steps: int
) -> tuple[SamplerState, None]:
    """`sdtt_jax.sample` on the uniform time grid, the network called at every step.

    `x_init` is `[batch, length]` int32, MASK where tokens are wanted. If any position is still masked at the
    end, one more call fills it greedily.
    """
    grid = jnp.linspace(1.0, SAMPLING_EPS, num_steps + 1)
    batch = x_init.shape[:1]

    def body(x: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        index, t, s = step
        t, s = jnp.broadcast_to(t, batch), jnp.broadcast_to(s, batch)
        return reverse_step(diffusion, params, jax.random.fold_in(key, index), x, t, s)[0], None

    def fill(x: jax.Array) -> jax.Array:
        sigma = diffusion.schedule.sigma(jnp.broadcast_to(grid[-1], batch))
        log_p_x0 = log_probs(_sizes(diffusion), params, x, sigma)
        return jnp.argmax(log_p_x0, axis=-1).astype(jnp.int32)

    x, _ = jax.lax.scan(body, x_init, (jnp.arange(num_steps), grid[:-1], grid[1:]))
    left = (x == diffusion.mask_id).any()
    x = jax.lax.cond(left, fill, lambda x: x, x)
    return SamplerState(x, num_steps + left.astype(jnp.int32)), None


def teacher_loss(diffusion: MaskedDiffusion, config: NelboConfig) -> LossFn:
    """`sdtt_jax.objectives.teacher_loss` with a full log-softmax over the vocabulary.

    It masks the same tokens for the same key.
    """

    def loss(params: Params, context: Any, batch: jax.Array, key: jax.Array) -> Loss:
        del context
        t, weight, x_t = nelbo.masked_batch(diffusion, batch, key, config)
        log_p_x0 = log_probs(_sizes(diffusion), params, x_t, diffusion.schedule.sigma(t))
        nll = -jnp.take_along_axis(log_p_x0, batch[..., None], axis=-1)[..., 0]
        bound = (nll * weight[:, None]).sum()
        tokens = jnp.float32(batch.size)
        masked = (x_t == diffusion.mask_id).sum().astype(jnp.float32)
        if config.weighting == "nelbo":
            return Loss(bound, tokens, {"masked_share": masked / tokens})
        return Loss(nll.sum(), masked, {"nelbo": Mean(bound, tokens)})

    return loss


def teacher_targets(
    diffusion: MaskedDiffusion,
    params: Params,
    key: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    dt: jax.Array,
    config: DistillConfig,
) -> jax.Array:
    """The teacher's log-probabilities at the step that revealed each position: `[batch, length, vocab]`.

    Positions that are never revealed take those of the last step (SDTT, arXiv 2410.21035, algorithm 1).
    `x_t` is `[batch, length]` int32, `t` is `[batch]` and `dt`, the teacher's step, `[]` float32.
    """
    k, x = config.num_distill_steps, x_t
    target: jax.Array | None = None
    for i in range(k):
        time = t - i * dt
        if config.reference_times:
            share = 1.0 - i / (k - 1)
            time = t * share + (1.0 - t) * (t - k * dt)
        time = jnp.maximum(time, SAMPLING_EPS)
        key_step = jax.random.fold_in(key, i)
        x_s, log_p_x0 = reverse_step(diffusion, params, key_step, x, time, time - dt)
        masked = (x == diffusion.mask_id)[..., None]
        target = log_p_x0 if target is None else jnp.where(masked, log_p_x0, target)
        x = x_s
    assert target is not None
    return target


def distill_loss(diffusion: MaskedDiffusion, config: DistillConfig) -> LossFn:
    """`sdtt_jax.objectives.distill_loss` with `[batch, length, vocab]` log-probabilities and targets.

    It masks the same tokens for the same key.
    """

    def loss(params: Params, context: Any, batch: jax.Array, key: jax.Array) -> Loss:
        t, x_t, key_teacher = distillation.distillation_batch(diffusion, batch, key, config)
        teacher, dt = jax.lax.stop_gradient(context["teacher_params"]), context["dt"]
        student = log_probs(_sizes(diffusion), params, x_t, diffusion.schedule.sigma(t))
        divergence = jnp.zeros(x_t.shape, jnp.float32)
        for key_trajectory in jax.random.split(key_teacher, config.num_trajectories):
            target = teacher_targets(diffusion, teacher, key_trajectory, x_t, t, dt, config)
            divergence += DIVERGENCES[config.divergence](student, target, diffusion.mask_id + 1)
        masked = x_t == diffusion.mask_id
        total = jnp.where(masked, divergence, 0.0).sum() / config.num_trajectories
        return Loss(total, masked.sum().astype(jnp.float32), {})

    return loss


def causal_nll(network: CausalNetwork, params: Params, tokens: jax.Array, bos_id: int) -> jax.Array:
    """-log p of every token, `[batch, length]`, from log-probabilities of the whole vocabulary at once."""
    inputs = jnp.concatenate([jnp.full_like(tokens[:, :1], bos_id), tokens[:, :-1]], axis=1)
    log_p = jax.nn.log_softmax(network.logits(params, network.hidden(params, inputs)))
    return -jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]


def _sizes(diffusion: MaskedDiffusion) -> DenoiserConfig:
    assert isinstance(diffusion.denoiser, Denoiser)
    return diffusion.denoiser.config


def _linear(p: Params, x: jax.Array) -> jax.Array:
    return x @ p["kernel"].astype(x.dtype) + p["bias"].astype(x.dtype)


def _layer_norm(p: Params, x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    normal = jax.nn.standardize(wide, axis=-1, epsilon=1e-5)
    return (normal * p["scale"]).astype(x.dtype)


def _modulation(p: Params, condition: jax.Array) -> jax.Array:
    """`[count, batch, 1, embed]` from `condition: [batch, cond]`."""
    kernel, bias = (p["linear"][name].astype(condition.dtype) for name in ("kernel", "bias"))
    return (jnp.einsum("bc,cne->nbe", condition, kernel) + bias[:, None])[:, :, None]


def _time_embedding(p: Params, sigma: jax.Array) -> jax.Array:
    half = TIME_FEATURES // 2
    angle = sigma[:, None] * 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    x = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return jax.nn.silu(_linear(p["down"], jax.nn.silu(_linear(p["up"], x))))


def _rotary(length: int, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """`cos, sin: [length, 1, head_dim]`, the same for both halves of the features."""
    frequency = 10_000.0 ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)[:, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x * cos + turned * sin).astype(x.dtype)
