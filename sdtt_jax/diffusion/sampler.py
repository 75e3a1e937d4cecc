"""The reverse process: one step, and whole generations from it.

The reference's ancestral and analytic samplers are the same distribution (a masked position is revealed
with probability `(alpha_s - alpha_t) / (1 - alpha_t)`, its token drawn from SUBS), so there is one step.
Which positions a step reveals does not depend on the network; they are chosen first, and a step that
reveals nothing in the whole batch calls no network.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sdtt_jax.config import one_of, positive
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import SAMPLING_EPS
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.ops.categorical import check_filters, draw, filter_logits
from sdtt_jax.ops.rows import chunk_size, flatten, fold_selected, over_batch_shards, take_rows

MODES = ("grid", "first-hitting")
TIME_GRIDS = ("uniform", "cosine")
# Of n positions a step of a generation reveals about n / num_steps. A chunk of a twelfth nearly always holds
# what one of 16 steps reveals; smaller ones read the head's kernel twice (1024 positions, 50k tokens, two CPU
# cores: 64 rows take 47 ms at once and 100 ms in halves).
PARTS = 12
# Name of the loop over chunks in profiles and compiled programs.
SCOPE = "reveal_rows"


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to sample.

    Attributes:
      num_steps: reverse steps on the time grid, or network calls of "first-hitting".
      time_grid: "uniform", or "cosine" (`t = cos(pi/2 (1 - u))`: small steps while little is known).
      final_denoise: greedily fill what is still masked after the last step.
      temperature, top_k, top_p: filters of the token distribution; 1, 0 and 1 are off.
      mode: "grid" takes reverse steps on a grid of times, each of which reveals as many tokens as chance
        wills. "first-hitting" reveals the tokens in a random order, as evenly over `num_steps` network
        calls as whole numbers allow (arXiv 2409.02908, section 4.2; with as many calls as tokens it is
        the exact reverse process, without a grid's error).
    """

    num_steps: int
    time_grid: str = "uniform"
    final_denoise: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    mode: str = "grid"

    def __post_init__(self) -> None:
        positive(self, "num_steps")
        one_of(self, mode=MODES, time_grid=TIME_GRIDS)
        check_filters(self.temperature, self.top_k, self.top_p)


@flax.struct.dataclass
class SamplerState:
    """Carry of the sampling loop.

    Attributes:
      x: `[batch, length]` int32.
      nfe: `[]` int32, network calls so far.
    """

    x: jax.Array
    nfe: jax.Array


def time_grid(config: SamplerConfig, eps: float = SAMPLING_EPS) -> jax.Array:
    """The times 1 = t_0 > … > t_n = eps of `num_steps` = n reverse steps: `[n + 1]` float32."""
    u = jnp.linspace(1.0, eps, config.num_steps + 1)
    if config.time_grid == "cosine":
        return jnp.cos(jnp.pi / 2 * (1 - u)).at[-1].set(eps)
    return u


def unmask_prob(schedule: Schedule, t: jax.Array, s: jax.Array) -> jax.Array:
    """`(alpha_s - alpha_t) / (1 - alpha_t)`: chance that a masked token is revealed from t to s < t.

    `s` is clamped at 0, where everything is revealed.
    """
    masked_t = schedule.move_chance(t)
    masked_s = schedule.move_chance(jnp.maximum(s, 0.0))
    return jnp.clip((masked_t - masked_s) / jnp.maximum(masked_t, 1e-30), 0.0, 1.0)


def choose_revealed(key: jax.Array, x_t: jax.Array, prob: jax.Array, mask_id: int) -> jax.Array:
    """Which masked positions a reverse step reveals: `[batch, length]` bool.

    Args:
      key: PRNG key.
      x_t: `[batch, length]` int32.
      prob: `[batch]` or `[]` float32, from `unmask_prob`.
      mask_id: the id of MASK.
    """
    prob = jnp.broadcast_to(prob, x_t.shape[:1])[:, None]
    return (x_t == mask_id) & (jax.random.uniform(key, x_t.shape) < prob)


def reveal(
    diffusion: MaskedDiffusion,
    params: Any,
    key: jax.Array,
    x_t: jax.Array,
    hidden: jax.Array,
    revealed: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """Draws tokens at `revealed` positions: `x_s: [batch, length]` int32.

    The head and the draw run on those positions only. Each has its own key, from its place in the batch,
    so that neither the size of the chunks nor the number of devices changes what is drawn.

    Args:
      diffusion, params: the model.
      key: PRNG key.
      x_t: `[batch, length]` int32.
      hidden: `[batch, length, embed]`, the network's hidden states at `x_t`.
      revealed: `[batch, length]` bool, from `choose_revealed`.
      temperature, top_k, top_p: see `filter_logits`.
    """

    def tokens(key: jax.Array, logits: jax.Array, place: jax.Array) -> jax.Array:
        logits = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, place)
        return jax.vmap(draw)(keys, logits)

    return _fill(diffusion, params, key, x_t, hidden, revealed, tokens)


def _fill(
    diffusion: MaskedDiffusion,
    params: Any,
    key: jax.Array | None,
    x: jax.Array,
    hidden: jax.Array,
    selected: jax.Array,
    tokens: Callable[[Any, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """`x` with `tokens(key, logits [n, mask_id], place [n])` at the selected positions.

    `place` is `sequence * length + position`. MASK and the padding stand after the vocabulary and are
    impossible: no noise is drawn for them. At 30 tokens padded to 128 that is 7 ms instead of 24 for a
    batch of 64 × 64 on two CPU cores.
    """
    denoiser = diffusion.denoiser
    places = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)

    def local(mapped: Any, whole: Any) -> tuple[jax.Array, tuple[()]]:
        x, hidden, selected, places = flatten(mapped)
        head, key = whole

        def body(x: jax.Array, index: jax.Array) -> jax.Array:
            logits = denoiser.logits(head, take_rows(hidden, index))[:, : denoiser.mask_id]
            new = tokens(key, logits, take_rows(places, index))
            return x.at[index].set(new, mode="drop")

        size = chunk_size(len(x), denoiser.padded_vocab, PARTS)
        with jax.named_scope(SCOPE):
            x = fold_selected(selected, size, body, x)
        return x.reshape(mapped[0].shape), ()

    whole = (denoiser.head_params(params), key)
    return over_batch_shards(local, (x, hidden, selected, places), whole)[0]


def reverse_step(
    diffusion: MaskedDiffusion,
    params: Any,
    key: jax.Array,
    state: SamplerState,
    t: jax.Array,
    s: jax.Array,
    config: SamplerConfig,
) -> SamplerState:
    """One reverse step from t to s < t; no network call if it reveals nothing.

    Args:
      diffusion, params: the model.
      key: PRNG key of this step.
      state: `x` and the count of network calls.
      t, s: `[]` float32.
      config: filters.
    """
    key_position, key_token = jax.random.split(key)
    prob = unmask_prob(diffusion.schedule, t, s)
    revealed = choose_revealed(key_position, state.x, prob, diffusion.mask_id)
    sigma = jnp.broadcast_to(diffusion.schedule.sigma(t), state.x.shape[:1])
    return _reveal_step(diffusion, params, key_token, state, revealed, sigma, config)


def _reveal_step(
    diffusion: MaskedDiffusion,
    params: Any,
    key: jax.Array,
    state: SamplerState,
    revealed: jax.Array,
    sigma: jax.Array,
    config: SamplerConfig,
) -> SamplerState:
    """Tokens at `revealed` from one network call at `sigma: [batch]`, or no call if there are none."""

    def call(x: jax.Array) -> jax.Array:
        hidden = diffusion.denoiser.hidden(params, x, sigma)
        return reveal(
            diffusion,
            params,
            key,
            x,
            hidden,
            revealed,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )

    needed = revealed.any()
    x = jax.lax.cond(needed, call, lambda x: x, state.x)
    return SamplerState(x, state.nfe + needed.astype(jnp.int32))


def hitting_order(
    key: jax.Array, x_t: jax.Array, num_steps: int, mask_id: int
) -> tuple[jax.Array, jax.Array]:
    """In which of `num_steps` calls each masked position is revealed, and what is masked by then.

    A position that is masked at time 1 is still so at time t with probability
    `move_chance(t) / move_chance(1)`; so the move chance at which it is revealed is uniform below
    `move_chance(1)`. Sorting those uniform numbers gives the order and the times at once.

    Args:
      key: PRNG key.
      x_t: `[batch, length]` int32.
      num_steps: calls.
      mask_id: the id of MASK.

    Returns:
      `call: [batch, length]` int32, `num_steps` where nothing is masked; and `[batch, num_steps]` float32,
      the move chance over `move_chance(1)` at which the first position of each call is revealed (0 for a
      call that reveals nothing).
    """
    masked = x_t == mask_id
    u = jnp.where(masked, jax.random.uniform(key, x_t.shape), -1.0)
    rank = jnp.argsort(jnp.argsort(-u, axis=-1), axis=-1)
    count = jnp.maximum(masked.sum(axis=-1, keepdims=True), 1)
    call = jnp.where(masked, rank * num_steps // count, num_steps).astype(jnp.int32)
    hits = jnp.zeros((len(x_t), num_steps))
    rows = jnp.arange(len(x_t))[:, None]
    return call, hits.at[rows, call].max(u, mode="drop")


def final_denoise(
    diffusion: MaskedDiffusion, params: Any, state: SamplerState, t: jax.Array
) -> SamplerState:
    """Fills what is still masked with the most probable token; no network call if nothing is."""

    def call(x: jax.Array) -> jax.Array:
        sigma = jnp.broadcast_to(diffusion.schedule.sigma(t), x.shape[:1])
        hidden = diffusion.denoiser.hidden(params, x, sigma)
        return _fill(diffusion, params, None, x, hidden, masked, most_probable)

    def most_probable(key: None, logits: jax.Array, place: jax.Array) -> jax.Array:
        del key, place
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    masked = state.x == diffusion.mask_id
    needed = masked.any()
    x = jax.lax.cond(needed, call, lambda x: x, state.x)
    return SamplerState(x, state.nfe + needed.astype(jnp.int32))


def prior_sample(
    batch: int,
    length: int,
    mask_id: int,
    tokens: jax.Array | None = None,
    fixed: jax.Array | None = None,
) -> jax.Array:
    """All MASK, but for `tokens: [batch, length]` where `fixed: [batch, length]` bool is True."""
    x = jnp.full((batch, length), mask_id, jnp.int32)
    if tokens is None or fixed is None:
        return x
    return jnp.where(fixed, tokens, x).astype(jnp.int32)


@flax.struct.dataclass
class Plan:
    """What a generation has settled before its first network call.

    Attributes:
      key: PRNG key; step i uses `fold_in(key, i)`.
      times: `[num_steps + 1]` float32, the grid.
      call: `[batch, length]` int32, the call that reveals each position; None in the mode "grid".
      sigmas: `[num_steps, batch]` float32, total noise at each call; None in the mode "grid".
    """

    key: jax.Array
    times: jax.Array
    call: jax.Array | None
    sigmas: jax.Array | None


def plan_generation(
    diffusion: MaskedDiffusion, key: jax.Array, x_init: jax.Array, config: SamplerConfig
) -> Plan:
    """The grid of times, and for "first-hitting" which call reveals which position.

    Args:
      diffusion: the model.
      key: PRNG key; the order of "first-hitting" is drawn with `fold_in(key, num_steps)`.
      x_init: `[batch, length]` int32.
      config: sampler.
    """
    times = time_grid(config)
    if config.mode == "grid":
        return Plan(key, times, None, None)
    order_key = jax.random.fold_in(key, config.num_steps)
    call, hits = hitting_order(order_key, x_init, config.num_steps, diffusion.mask_id)
    sigmas = -jnp.log1p(-diffusion.schedule.move_chance(times[0]) * hits)
    return Plan(key, times, call, sigmas.T)


def take_step(
    diffusion: MaskedDiffusion,
    params: Any,
    plan: Plan,
    state: SamplerState,
    index: jax.Array,
    config: SamplerConfig,
) -> SamplerState:
    """Step `index: [] int32` of a planned generation; see `sample`."""
    key = jax.random.fold_in(plan.key, index)
    if plan.call is None or plan.sigmas is None:
        t, s = plan.times[index], plan.times[index + 1]
        return reverse_step(diffusion, params, key, state, t, s, config)
    revealed = plan.call == index
    return _reveal_step(diffusion, params, key, state, revealed, plan.sigmas[index], config)


def finish(
    diffusion: MaskedDiffusion,
    params: Any,
    plan: Plan,
    state: SamplerState,
    config: SamplerConfig,
) -> SamplerState:
    """What follows the last step: `final_denoise`, if the config asks for it."""
    if not config.final_denoise:
        return state
    return final_denoise(diffusion, params, state, plan.times[-1])


def sample(
    diffusion: MaskedDiffusion,
    params: Any,
    key: jax.Array,
    x_init: jax.Array,
    config: SamplerConfig,
    *,
    keep_states: bool = False,
) -> tuple[SamplerState, jax.Array | None]:
    """A whole generation in one `lax.scan`.

    Args:
      diffusion, params: the model.
      key: PRNG key, see `plan_generation` and `take_step`.
      x_init: `[batch, length]` int32 from `prior_sample`; positions that are not MASK stay (prompts,
        infilling).
      config: steps, grid and filters; static under `jit`.
      keep_states: also return every state.

    Returns:
      The final `SamplerState` (`x` without MASK if `final_denoise`), and with `keep_states` the states
      `[num_steps + 2, batch, length]` from `x_init` to the final one, else None.
    """
    plan = plan_generation(diffusion, key, x_init, config)

    def body(state: SamplerState, index: jax.Array) -> tuple[SamplerState, jax.Array | None]:
        state = take_step(diffusion, params, plan, state, index, config)
        return state, state.x if keep_states else None

    state = SamplerState(x_init, jnp.int32(0))
    state, states = jax.lax.scan(body, state, jnp.arange(config.num_steps))
    state = finish(diffusion, params, plan, state, config)
    if states is not None:
        states = jnp.concatenate([x_init[None], states, state.x[None]])
    return state, states
