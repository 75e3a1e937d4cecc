"""The reverse process: whole generations.

Between the times t and s < t a masked position is revealed with probability
`(alpha_s - alpha_t) / (1 - alpha_t)`, and its token is drawn from the SUBS distribution (MDLM,
arXiv 2406.07524; the reference's ancestral and analytic samplers are both exactly this). So which position is
revealed when does not depend on the network. A generation draws this first, for all steps at once, as a
`Plan`; then each step calls the network once, applies the head only at that step's positions, and draws their
tokens. A step that reveals nothing in the whole batch makes no network call. Other `decoders` choose the
positions of a step by what the network predicts there, or mask tokens again.

The random numbers that tokens are drawn with can be drawn in advance as well, as `Noise`: the whole
generation is then a function of it. A network that sees noise gets the same noise at every call.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from sdtt_jax.config import flags, instance, one_of, require, whole, within
from sdtt_jax.diffusion.calls import cooled, still_masked
from sdtt_jax.diffusion.decoders import filling, parse_mode, serving, stopping
from sdtt_jax.diffusion.decoders.base import Helper, Memory, Now, Pick, Scene
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import SAMPLING_EPS
from sdtt_jax.diffusion.guidance import check_guidable, check_guided, guided
from sdtt_jax.ops.categorical import Filters
from sdtt_jax.ops.noise import Noise, draw_noise
from sdtt_jax.ops.tokens import as_ids, as_rows
from sdtt_jax.parallel.mesh import vary_alike
from sdtt_jax.typing import Key, Params, PerSequence, Positions, PositionsLike, Tokens, TokensLike

TIME_GRIDS = ("uniform", "cosine")
# A plan takes 4 bytes per text and step; a request for more steps than this is surely a mistake.
MAX_STEPS = 10**6


@dataclasses.dataclass(frozen=True)
class SamplerConfig(Filters):
    """How to sample; the filters of the token distribution are keyword-only.

    Attributes:
      num_steps: reverse steps on the time grid, or network calls of "first-hitting".
      time_grid: "uniform", or "cosine" (`t = cos(pi/2 (1 - u))`: small steps while little is known), which is
        for the modes "grid", "remdm" and "remdm-confidence"; the others do not use the times.
      final_denoise: greedily fill what is still masked after the last step.
      mode: the decoder, a name in `decoders.DECODERS` with its options. "grid" takes reverse steps on a grid
        of times, each of which reveals a random number of tokens. "first-hitting" reveals the tokens in a
        random order, as evenly over `num_steps` network calls as whole numbers allow; "learnt" with a learnt
        number for each call. "confidence" and "entropy-bounded" reveal what the network is surest of,
        "remdm" masks tokens again. "blocks", "refine", "speculative", "staged", "skeleton" and "energy" make
        their own calls, the last four also of a helper. `stop=` ends a text early (`decoders.stopping`).
      temperature, top_k, top_p: filters of the token distribution; 1, 0 and 1 are off. For a network that
        sees noise, temperature 0 takes the tokens that the noise determines, and 1 draws from what the
        network predicts.
      cooling: how far the temperature falls over the steps (`calls.cooled`); 0 is off.
      guidance: scale of guidance by what is given (`guidance.Guided`), which doubles the calls; 0 is off.
    """

    num_steps: int
    time_grid: str = "uniform"
    final_denoise: bool = True
    mode: str = "grid"
    cooling: float = 0.0
    guidance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(1, self, "num_steps")
        within(f"[1, {MAX_STEPS}]", self, "num_steps")
        one_of(self, time_grid=TIME_GRIDS)
        flags(self, "final_denoise")
        within("[0, 1)", self, "cooling")
        within("[0, 1e20]", self, "guidance")  # far from float32's end, where logits become NaN
        mode = parse_mode(self.mode)
        check_guided(self.guidance, mode)
        require(
            self.time_grid == TIME_GRIDS[0] or mode.decoder.timed,
            f"time_grid={self.time_grid} has no effect with mode={self.mode!r}; leave it at uniform, or use "
            "grid, remdm or remdm-confidence.",
        )
        if self.cooling > 0:
            require(not self.greedy, "cooling has no effect at temperature 0; set cooling=0.")
            require(
                mode.decoder.step is None,
                f"mode={self.mode!r} draws in its own way, at one temperature; leave cooling at 0.",
            )


@flax.struct.dataclass
class SamplerState:
    """State of a generation between two steps.

    Attributes:
      x: `[batch, length]` int32.
      nfe: `[]` int32, network calls so far.
      memory: what a decoder keeps from step to step; None if nothing.
      watch: which texts have stopped; None where the mode stops none.
    """

    x: Tokens
    nfe: jax.Array
    memory: Memory = None
    watch: stopping.Watch | None = None


@flax.struct.dataclass
class Plan:
    """What a generation decides before the first network call."""

    key: Key  # PRNG key; step i draws its tokens with `fold_in(key, i)`
    # `[batch, length]` int32, the step that reveals each position: `num_steps` for positions without a step,
    # more for positions that were never masked.
    call: jax.Array
    # `[num_steps + 1, batch]` float32, total noise at each step, and after the last one.
    sigmas: jax.Array
    # The `Noise` that tokens are drawn with, or `shown` of it; None: fresh noise at every step.
    noise: Any = None
    # `[num_steps + 1]` float32, further divisors of each step's logits; None: no further ones.
    temperatures: jax.Array | None = None


def sample(
    diffusion: MaskedDiffusion,
    params: Params,
    key: Key,
    x_init: TokensLike,
    config: SamplerConfig,
    *,
    noise: Noise | None = None,
    keep_states: bool = False,
    helper: Helper | None = None,
) -> tuple[SamplerState, jax.Array | None]:
    """A whole generation in one `lax.scan`, or `lax.while_loop` where the mode has `stop=`.

    Call it under `jax.jit`, with `diffusion` and `config` static: outside of it, JAX compiles the loop
    again at every call. (`Model.sample` and `Model.denoise` are compiled.)

    Args:
      diffusion, params: the model.
      key: PRNG key.
      x_init: `[batch, length]` int32 from `prior_sample`; tokens that are not MASK stay as they are.
      config: steps, grid and filters; static under `jit`.
      noise: the noise that determines the generation, for "grid", "first-hitting" and "learnt" (and only at
        temperature 0 if the network sees it); None draws it from `key`.
      keep_states: also return every state.
      helper: the second model of a decoder that needs one.

    Returns:
      The final `SamplerState` (`x` without MASK if `final_denoise`), and with `keep_states` the states
      `[num_steps + 2, batch, length]` from `x_init` to the final one, else None.

    Examples:
      >>> import sdtt_jax
      >>> config = sdtt_jax.DenoiserConfig(5, length=8, num_layers=1, embed_dim=16, num_heads=2)
      >>> diffusion = sdtt_jax.MaskedDiffusion(sdtt_jax.Denoiser(config), sdtt_jax.make_schedule())
      >>> params = sdtt_jax.unbox(jax.jit(sdtt_jax.Denoiser(config).init)(jax.random.key(0)))
      >>> sample(diffusion, params, jax.random.key(1), prior_sample(2, 8, 5), SamplerConfig(4))[0].x.shape
      (2, 8)
    """
    instance(SamplerConfig, config=config)
    x_init = jnp.asarray(as_rows(x_init, diffusion.mask_id + 1, "x_init"))
    state = first_state(diffusion, params, x_init, config, helper)
    plan = plan_generation(diffusion, key, x_init, config, noise)
    state, plan = vary_alike(state, with_prepared_noise(diffusion, params, plan))

    def body(state: SamplerState, index: jax.Array) -> tuple[SamplerState, jax.Array | None]:
        state = take_step(diffusion, params, plan, state, index, config, helper)
        return state, state.x if keep_states else None

    if state.watch is not None and not keep_states:
        state = stopping.until_stopped(lambda *now: body(*now)[0], state, config.num_steps)
        states = None
    else:
        state, states = jax.lax.scan(body, state, jnp.arange(config.num_steps + 1, dtype=jnp.int32))
        states = None if states is None else jnp.concatenate([x_init[None], states])
    # The memory of a decoder, such as keys and values, is no longer needed.
    return SamplerState(state.x, state.nfe), states


def prior_sample(
    batch: int,
    length: int,
    mask_id: int,
    tokens: TokensLike | None = None,
    fixed: PositionsLike | None = None,
) -> Tokens:
    """Where a generation starts: `[batch, length]` int32, all MASK except for what is given.

    Args:
      batch, length, mask_id: the result's shape, and the id of MASK.
      tokens, fixed: `[batch, length]` int32 and bool, both or neither; tokens stay where `fixed` is True.

    Raises:
      ConfigError: only one of `tokens` and `fixed` is given, or one with more rows or columns; a number is
        negative, or what stays is no token.
    """
    whole(0, batch=batch, length=length, mask_id=mask_id)
    x = jnp.full((batch, length), mask_id, jnp.int32)
    if all(missing := (tokens is None, fixed is None)):
        return x
    require(not any(missing), "prior_sample needs both tokens and fixed, or neither.")
    x = jnp.where(jnp.asarray(fixed), jnp.asarray(tokens), x)
    require(x.shape == (batch, length), f"tokens and fixed are {x.shape}, not {(batch, length)}.")
    return as_ids(x, mask_id + 1)


def first_state(
    diffusion: MaskedDiffusion,
    params: Params,
    x_init: Tokens,
    config: SamplerConfig,
    helper: Helper | None = None,
) -> SamplerState:
    """The state before the first step.

    Args:
      diffusion, params: the model.
      x_init: `[batch, length]` int32.
      config: sampler.
      helper: the second model of a decoder that needs one.

    Raises:
      ConfigError: the model or the helper does not suit the decoder.
    """
    check_guidable(diffusion, config.guidance)
    scene = Scene(diffusion, params, helper, config, time_grid(config))
    mode = parse_mode(config.mode)
    watch = None if mode.stop is None else stopping.begin_watch(x_init, diffusion.mask_id)
    return SamplerState(x_init, jnp.int32(0), serving.begin(mode, scene, x_init), watch)


def time_grid(config: SamplerConfig) -> jax.Array:
    """The times 1 = t_0 > … > t_n = `SAMPLING_EPS` of `num_steps` = n reverse steps: `[n + 1]` float32."""
    u = jnp.linspace(1.0, SAMPLING_EPS, config.num_steps + 1, dtype=jnp.float32)
    if config.time_grid == "cosine":
        return jnp.cos(jnp.pi / 2 * (1 - u)).at[-1].set(SAMPLING_EPS)
    return u


def plan_generation(
    diffusion: MaskedDiffusion,
    key: Key,
    x_init: Tokens,
    config: SamplerConfig,
    noise: Noise | None = None,
) -> Plan:
    """Draws which step reveals which position.

    A position that is masked at time 1 is still masked at time t with probability
    `move_chance(t) / move_chance(1)`. So one uniform number for each position, the share of `move_chance(1)`
    at which it is revealed, reproduces the distribution of all steps together.

    Args:
      diffusion: the model.
      key: PRNG key; the uniform numbers, or all noise, are drawn with `fold_in(key, num_steps)`.
      x_init: `[batch, length]` int32.
      config: sampler.
      noise: its `order` holds the uniform numbers; None draws noise if the network sees any.

    Raises:
      ConfigError: noise is given, but does not determine what the decoder writes.
    """
    mode, times = parse_mode(config.mode), time_grid(config)
    if noise is not None:
        serving.check_decided(mode)
    masked, key_plan = x_init == diffusion.mask_id, jax.random.fold_in(key, config.num_steps)
    if noise is None and diffusion.noise_kind is not None:
        noise = draw_noise(key_plan, x_init.shape, diffusion.mask_id, diffusion.noise_kind)
    share = (
        jax.random.uniform(key_plan, x_init.shape, jnp.float32) if noise is None else noise.order
    )
    call, sigmas = mode.decoder.plan(mode.options, share, masked, diffusion.schedule, times)
    return Plan(key, jnp.where(masked, call, config.num_steps + 1), sigmas, noise)


def with_prepared_noise(diffusion: MaskedDiffusion, params: Params, plan: Plan) -> Plan:
    """`plan` with `MaskedDiffusion.shown` applied to its noise, once for all steps."""
    return dataclasses.replace(plan, noise=diffusion.shown(params, plan.noise))


def take_step(
    diffusion: MaskedDiffusion,
    params: Params,
    plan: Plan,
    state: SamplerState,
    index: jax.Array,
    config: SamplerConfig,
    helper: Helper | None = None,
) -> SamplerState:
    """Step `index: [] int32` of a generation: draws the tokens of its positions.

    Args:
      diffusion, params: the model.
      plan: from `plan_generation`.
      state: after the previous steps.
      index: which of `config.num_steps` steps; or `num_steps`, the step that fills what the others left
        masked with the most probable tokens, if `config.final_denoise`.
      config: sampler.
      helper: the second model of a decoder that needs one.
    """
    stop, watch = parse_mode(config.mode).stop, state.watch
    free = plan.call <= config.num_steps
    model, each = guided(diffusion, ~free, config.guidance), 2 if config.guidance else 1

    def step(state: SamplerState) -> SamplerState:
        after = _step(model, params, plan, state, index, config, helper)
        return dataclasses.replace(after, nfe=state.nfe + (after.nfe - state.nfe) * each)

    if stop is None or watch is None:
        return step(state)

    after = jax.lax.cond(watch.stopped.all(), lambda state: state, step, state)
    x = jnp.where(watch.stopped[:, None], state.x, after.x)  # in which nothing is masked
    watch = stopping.updated_watch(stop, diffusion.mask_id, watch, state.x, x, free)
    # At once, so that no call is made for what is masked after EOS.
    x = stopping.fill_with_eos(stop, diffusion.mask_id, x, free)
    return dataclasses.replace(after, x=x, watch=watch)


class _Due(NamedTuple):
    """The network call of a step: where it draws tokens, and what it masks again."""

    selected: Positions  # positions whose tokens are drawn, in one network call
    sigma: PerSequence  # total noise passed to the network
    pick: Pick | None = None  # accepts some of the positions, given the predictions there
    again: Positions | None = None  # positions that are masked afterwards


def _step(
    diffusion: MaskedDiffusion,
    params: Params,
    plan: Plan,
    state: SamplerState,
    index: jax.Array,
    config: SamplerConfig,
    helper: Helper | None,
) -> SamplerState:
    """`take_step` for all texts, including those that have stopped."""
    mode = parse_mode(config.mode)
    decoder, options = mode.decoder, mode.options
    key, last = jax.random.fold_in(plan.key, index), index == config.num_steps
    planned = (plan.call == index) & (state.x == diffusion.mask_id)  # not after the EOS of `stop=`
    due = _Due(planned, plan.sigmas[index])
    scene = Scene(diffusion, params, helper, config, time_grid(config))
    now = Now(state.x, due.selected, plan.call <= config.num_steps, index, state.memory)
    if decoder.step is not None:
        x, calls, memory = serving.own_step(mode, scene, key, now)
        state = dataclasses.replace(state, x=x, nfe=state.nfe + calls, memory=memory)
        due = due._replace(selected=last & (x == diffusion.mask_id))
    elif decoder.pick is not None:
        key, key_position = jax.random.split(key)
        due = _picked(functools.partial(decoder.pick, options), scene, key_position, now, mode.stop)
    elif decoder.redo is not None:
        key, key_position = jax.random.split(key)
        due = _redone(functools.partial(decoder.redo, options), scene, key_position, now, plan)
    selected = due.selected if config.final_denoise else due.selected & ~last
    temperatures = plan.temperatures
    if config.cooling > 0:
        falling = jnp.asarray(cooled(config.num_steps, config.temperature, config.cooling))
        temperatures = falling if temperatures is None else temperatures * falling
        config = dataclasses.replace(config, temperature=1.0, cooling=0.0)
    choose = filling.choice(config, plan.noise, sees_noise=diffusion.noise_kind is not None)
    of_call = decoder.temperature(options, index) if decoder.temperature is not None else None
    for scale in (of_call, None if temperatures is None else temperatures[index]):
        choose = choose if scale is None else filling.at_temperature(choose, scale)
    choose = filling.greedy_at_last(choose, last)
    x, calls = filling.reveal(
        diffusion, params, state.x, selected, due.sigma, choose, key, plan.noise, due.pick
    )
    x = x if due.again is None else jnp.where(due.again, diffusion.mask_id, x)
    return dataclasses.replace(state, x=x, nfe=state.nfe + calls)


def _picked(
    pick_of: Callable[..., Pick], scene: Scene, key: Key, now: Now, stop: stopping.Stop | None
) -> _Due:
    """All masked positions; `Decoder.pick` takes some of them, and the last step takes the rest."""
    masked = now.x == scene.diffusion.mask_id
    calls_left, last = jnp.maximum(scene.num_steps - now.call, 1), now.call == scene.num_steps
    some = pick_of(key, calls_left)
    pick = Pick(some.score, lambda score, due: some.accept(score, due) | (last & masked))
    if stop is not None and stop.entropy > 0:
        pick = stopping.finishing(pick, stop.entropy)
    return _Due(masked, now.sigma(scene), pick)


def _redone(redo: Callable[..., Any], scene: Scene, key: Key, now: Now, plan: Plan) -> _Due:
    """What `Decoder.redo` reveals and masks again, both at random; the last step reveals everything."""
    masked, last = now.x == scene.diffusion.mask_id, now.call == scene.num_steps
    steps = jnp.stack([now.call, jnp.minimum(now.call + 1, scene.num_steps)])
    still = still_masked(scene.diffusion.schedule, scene.times)
    reveal, remask = redo(*still[steps])
    uniform = jax.random.uniform(key, now.x.shape, jnp.float32)
    again = (plan.call == scene.num_steps) & ~masked & ~last & (uniform < remask)
    return _Due(masked & (last | (uniform < reveal)), plan.sigmas[now.call], again=again)
