"""A loaded denoiser: network, parameters, tokenizer and noise schedule; it samples and scores texts."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdtt_jax.config import check_fields, flags, require, whole
from sdtt_jax.diffusion.decoders.base import Helper
from sdtt_jax.diffusion.denoiser import MaskedDiffusion
from sdtt_jax.diffusion.forward import subs_log_probs
from sdtt_jax.diffusion.guidance import check_given
from sdtt_jax.diffusion.nelbo import nelbo
from sdtt_jax.diffusion.sampler import (
    Plan,
    SamplerConfig,
    SamplerState,
    plan_generation,
    take_step,
    with_prepared_noise,
)
from sdtt_jax.diffusion.schedule import Schedule
from sdtt_jax.diffusion.shared_program import outline, spread_of
from sdtt_jax.keys import check_key
from sdtt_jax.model.base import Loaded, as_helper_of
from sdtt_jax.model.batches import Written, batched, unmasked
from sdtt_jax.model.generation import begin, generate
from sdtt_jax.model.learnt import with_stored_schedule
from sdtt_jax.model.prompts import Texts, cut_at_eos, given_batch, with_length
from sdtt_jax.networks import Denoiser, DenoiserConfig
from sdtt_jax.ops.categorical import NEG_INFINITY
from sdtt_jax.ops.sequences import Sequences, arrange
from sdtt_jax.ops.tokens import as_ids, as_rows
from sdtt_jax.ops.values import check_numbers
from sdtt_jax.parallel.processes import to_host
from sdtt_jax.typing import Key, Logits, LogProbs, Params, PerSequence, Tokens, TokensLike


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Model(Loaded):
    """A denoiser with its parameters.

    Methods raise `ConfigError` for arrays that lack the documented shape, and for ids that do not exist.

    Attributes:
      denoiser: the network, as pure functions.
      schedule: the noise schedule that it was trained with.
    """

    denoiser: Denoiser
    schedule: Schedule

    @property
    def diffusion(self) -> MaskedDiffusion:
        """Network and schedule as one object for samplers, losses and measures."""
        return MaskedDiffusion(self.denoiser, self.schedule)

    @property
    def config(self) -> DenoiserConfig:
        return self.denoiser.config

    @property
    def mask_id(self) -> int:
        return self.denoiser.mask_id

    @property
    def as_helper(self) -> Helper:
        return Helper(self.params, self.denoiser)

    def logits(self, tokens: TokensLike, sigma: ArrayLike = 0.0) -> Logits:
        """`[B, L]` int32, MASK or tokens → `[B, L, V]` float32, V with MASK and without padding.

        `sigma` is the total noise, one number or `[B]`; only a time-conditioned network reads it. Attention
        keeps to each text of a row, and leaves out padding, if it did in training: EOS says where texts end.
        `ConfigError` if the network is a function of noise, without which it was never trained.
        """
        self.require_likelihood()
        tokens = self.noisy(tokens)
        check_numbers("[0, inf)", (), tokens.shape[:1], sigma=sigma)
        with self.on_mesh():
            own = isinstance(sigma, jax.Array)
            noise = sigma if own else jax.device_put(np.asarray(sigma, np.float32))
            noise = jnp.asarray(noise, jnp.float32)
            return _logits(self.diffusion, self.params, tokens, noise, self.sequences)

    def log_probs(self, x_t: TokensLike, sigma: ArrayLike = 0.0) -> LogProbs:
        """SUBS log-probabilities `[B, L, V]` float32, -inf where impossible; all else as in `logits`."""
        x_t = self._rows(x_t, self.mask_id + 1)
        with self.on_mesh():
            return _log_probs(self.logits(x_t, sigma), self.placed(x_t), self.mask_id)

    def require_likelihood(self) -> None:
        """Raises `ConfigError` if the network is a function of noise, not a distribution."""
        require(
            self.diffusion.noise_kind is None,
            f"{self.facts['path']} is a function of its noise and has no likelihood; judge its samples.",
        )

    def noisy(self, x_t: ArrayLike) -> jax.Array:
        """Checks `x_t: [B, L]` (MASK or tokens, else `ConfigError`) and places it on the model's devices."""
        return self.placed(self._rows(x_t, self.mask_id + 1))

    def _rows(self, tokens: ArrayLike, num_ids: int) -> Any:
        rows, length = as_rows(tokens, num_ids), self.config.length
        require(
            rows.shape[1] <= length,
            f"tokens: the texts have {rows.shape[1]} positions, but {self.facts['path']} has {length}.",
        )
        return rows

    def _asked(
        self, key: Key, x_init: ArrayLike, config: SamplerConfig, helper: Loaded | Helper | None
    ) -> tuple[Key, Any, SamplerConfig, Helper | None]:
        """Checks what is asked for: key, rows `[B, L]`, config with a stored schedule, and helper."""
        check_key(key)
        rows = self._rows(x_init, self.mask_id + 1)
        config, other = with_stored_schedule(config, self), as_helper_of(helper, self)
        check_given(config.guidance, rows, self.mask_id)
        return self.near(key), rows, config, other

    def sample(
        self,
        key: Key,
        num_samples: int,
        num_steps: int,
        prompt: Texts = None,
        *,
        infill: Texts = None,
        num_tokens: int | None = None,
        stop_at_eos: bool = False,
        batch_size: int = 32,
        helper: Loaded | Helper | None = None,
        **options: Any,
    ) -> Tokens:
        """Texts `[num_samples, L]` int32; `tokenizer.decode` turns a row into text.

        The first three arguments are enough; the others are the flags of `experiments.sample`.

        Args:
          key: PRNG key; batch i is drawn with `fold_in(key, i)`.
          num_samples: how many.
          num_steps: reverse steps.
          prompt: text that the samples begin with, after `first_token` where there is one; one for all or
            one for each, of any lengths.
          infill: text with gaps, "[12]" for 12 tokens; one for all or one for each.
          num_tokens: as `prior` takes it.
          stop_at_eos: what follows the first EOS of a text becomes EOS too.
          batch_size: texts at once, as many as memory allows; another size gives other draws.
          helper: the second model, as `sdtt_jax.load` returns it, of a decoder that needs one, such as
            "speculative".
          **options: further fields of `SamplerConfig` (temperature, cooling, guidance, top_k,
            top_p, time_grid, mode).

        Raises:
          ConfigError: the given text is longer than the model's sequences, or an option is out of range.

        Examples:
          >>> import sdtt_jax
          >>> model = sdtt_jax.load("runs/demo")
          >>> tokens = model.sample(jax.random.key(0), num_samples=2, num_steps=4, prompt="in the ")
          >>> [model.tokenizer.decode(row)[:7] for row in tokens]
          ['in the ', 'in the ']
        """
        check_fields(SamplerConfig, options, "sample")
        flags(stop_at_eos=stop_at_eos)
        config = SamplerConfig(num_steps=num_steps, **options)
        special = self.ends if stop_at_eos else ()
        require(
            special is not None,
            f"stop_at_eos: {self.facts['path']} has no tokenizer to say which token is EOS; leave it out.",
        )
        x_init = self.prior(num_samples, prompt, infill, num_tokens)
        batches = self.batches(key, x_init, config, batch_size, helper)
        tokens = np.concatenate([write().tokens for write in batches])
        if special:
            tokens = cut_at_eos(tokens, to_host(x_init) != self.mask_id, *special)
        return jax.device_put(tokens)

    def batches(
        self,
        key: Key,
        x_init: ArrayLike,
        config: SamplerConfig,
        batch_size: int = 32,
        helper: Loaded | Helper | None = None,
    ) -> list[Callable[[], Written]]:
        """Fills the MASK positions of `x_init: [B, L]` int32: one function per batch writes its texts.

        Args:
          key: PRNG key; batch i is drawn with `fold_in(key, i)`, so that two models with one key share all
            noise.
          x_init: for example from `prior`.
          config: sampler.
          batch_size: texts at once, as many as memory allows.
          helper: the second model of a decoder that needs one.
        """
        key, given, config, other = self._asked(key, x_init, config, helper)
        rows = to_host(given)

        def write(params: Params, index: jax.Array, rows: jax.Array) -> Written:
            draw = jax.random.fold_in(key, index)
            state = generate(self.diffusion, params, draw, rows, config, self.sequences, other)
            return Written(state.x, np.full(len(rows), to_host(state.nfe)))

        return batched(write, self.params, rows, batch_size, unmasked(rows, self.mask_id))

    @property
    def first_token(self) -> int | None:
        """BOS if every training sequence began with it, as for the reference's models; else None.

        A prompt then follows it, as in the reference's README: a network that has always seen BOS at
        position 0 has learnt nothing about text there.
        """
        if self.ends is None or not self.facts.get("begins_with_bos"):
            return None
        return self.ends[0]

    def prior(
        self,
        num_samples: int,
        prompt: Texts = None,
        infill: Texts = None,
        num_tokens: int | None = None,
    ) -> Tokens:
        """Where generation starts: `[num_samples, L]` int32, MASK except for the text that is given.

        The given text follows `first_token` where there is one; without text all is MASK. For a model trained
        on instructions, BOS follows the prompt (even an empty one, as that of an infill), as in training.

        Args:
          num_samples: how many.
          prompt: text that the samples begin with, one for all or one for each, of any lengths.
          infill: text with gaps, "[12]" for 12 tokens; one for all or one for each.
          num_tokens: how many tokens follow the given text; EOS and padding follow them. Only for a model of
            single texts, which thereby learns how long the text is to be. None: as many as fit.
        """
        whole(1, num_samples=num_samples)
        length, sequences = self.config.length, self.sequences
        mark = self.prompt_end
        if prompt is None and infill is None and num_tokens is None and mark is None:
            return jax.device_put(np.full((num_samples, length), self.mask_id, np.int32))
        if mark is not None and prompt is None and infill is None:
            prompt = ""
        bos = self.first_token
        room = length if bos is None else length - 1
        tokens, fixed = given_batch(self.text_tokenizer, room, num_samples, prompt, infill, mark)
        if bos is not None:
            tokens, fixed = np.insert(tokens, 0, bos, axis=1), np.insert(fixed, 0, True, axis=1)
        if num_tokens is not None:
            whole(1, num_tokens=num_tokens)
            require(
                sequences is not None and sequences.has_padding,
                "num_tokens is for a model that was trained on sequences of one text each.",
            )
            tokens, fixed = with_length(tokens, fixed, num_tokens, self.text_tokenizer.eos_id)
        x = np.where(fixed, tokens, self.mask_id)
        return jax.device_put(as_ids(x, self.mask_id + 1))

    def denoise(
        self,
        key: Key,
        x_init: ArrayLike,
        config: SamplerConfig,
        helper: Loaded | Helper | None = None,
    ) -> SamplerState:
        """Fills MASK positions in one batch: `x: [B, L]` int32, and the number of network calls, `nfe`.

        Args:
          key: PRNG key.
          x_init: `[B, L]` int32, for example from `prior`.
          config: sampler.
          helper: the second model of a decoder that needs one.
        """
        key, rows, config, other = self._asked(key, x_init, config, helper)
        x_init = self.placed(rows)
        with self.on_mesh():
            return generate(self.diffusion, self.params, key, x_init, config, self.sequences, other)

    def states(
        self,
        key: Key,
        x_init: ArrayLike,
        config: SamplerConfig,
        helper: Loaded | Helper | None = None,
    ) -> Iterator[SamplerState]:
        """`denoise`, with the same arguments, step by step: yields each state as soon as it is computed.

        The last of the `num_steps + 2` states is what `denoise` returns for the same key.
        """
        key, rows, config, other = self._asked(key, x_init, config, helper)
        x = self.placed(rows)
        with self.on_mesh():
            state = begin(self.diffusion, self.params, x, config, self.sequences, other)
        return self._states(key, state, config, other)

    def _states(
        self, key: Key, state: SamplerState, config: SamplerConfig, helper: Helper | None
    ) -> Iterator[SamplerState]:
        x_init = state.x
        with self.on_mesh():
            plan = _plan(outline(self.diffusion), key, x_init, spread_of(config))
            if plan.noise is not None:
                plan = _prepared(self.diffusion, self.params, plan)
        placed = getattr(jax.tree.leaves(self.params)[0], "sharding", None)
        if self.mesh is None and placed is not None:
            # The later states are committed to the device that holds the parameters. If the first were not,
            # the step would be compiled twice.
            state = jax.device_put(state, *placed.device_set)
        yield state
        for index in range(config.num_steps + 1):
            with self.on_mesh():
                now = state, jax.device_put(np.int32(index)), config, self.sequences, helper
                state = _take_step(self.diffusion, self.params, (plan, x_init), *now)
            yield state

    def score(self, tokens: TokensLike, key: Key, num_samples: int = 1) -> PerSequence:
        """Monte Carlo estimate of the NELBO of each sequence: `[B]` float32, nats per token.

        NaN for a sequence in which nothing counts, such as a prompt alone. Values only: JAX raises where
        it is differentiated; train on `denoising_terms(model.diffusion, …).total`.

        Args:
          tokens: `[B, L]` int32, text: no MASK.
          key: PRNG key.
          num_samples: maskings per sequence, at least 1.

        Examples:
          >>> import sdtt_jax
          >>> model = sdtt_jax.load("runs/demo")
          >>> tokens = model.sample(jax.random.key(0), num_samples=2, num_steps=4)
          >>> model.score(tokens, jax.random.key(1), num_samples=8).shape
          (2,)
        """
        whole(1, num_samples=num_samples)
        check_key(key)
        self.require_likelihood()
        key, tokens = self.near(key), self.placed(self._rows(tokens, self.mask_id))
        with self.on_mesh():
            numbers = jax.device_put(list(np.arange(num_samples, dtype=np.uint32)))
            keys = (jax.random.fold_in(key, number) for number in numbers)
            given = self.diffusion, self.params, tokens
            return jnp.stack([_score(*given, key, self.sequences) for key in keys]).mean(axis=0)


@functools.partial(jax.jit, static_argnames=("diffusion", "sequences"))
def _logits(
    diffusion: MaskedDiffusion,
    params: Params,
    tokens: Tokens,
    sigma: jax.Array,
    sequences: Sequences | None,
) -> jax.Array:
    denoiser = diffusion.within(arrange(tokens, sequences)).denoiser
    hidden = denoiser.hidden(params, tokens, jnp.broadcast_to(sigma, tokens.shape[:1]))
    return denoiser.logits(params, hidden)[..., : denoiser.mask_id + 1]


@functools.partial(jax.jit, static_argnames="mask_id")
def _log_probs(logits: Logits, x_t: Tokens, mask_id: int) -> LogProbs:
    log_probs = subs_log_probs(logits, x_t, mask_id)
    return jnp.where(log_probs > 0.5 * NEG_INFINITY, log_probs, -jnp.inf)


@functools.partial(jax.jit, static_argnames=("diffusion", "sequences"))
def _score(
    diffusion: MaskedDiffusion,
    params: Params,
    tokens: Tokens,
    key: Key,
    sequences: Sequences | None,
) -> PerSequence:
    return nelbo(diffusion.within(arrange(tokens, sequences)), params, tokens, key)


@functools.partial(jax.jit, static_argnames=("diffusion", "config", "sequences"))
def _take_step(
    diffusion: MaskedDiffusion,
    params: Params,
    begun: tuple[Plan, Tokens],
    state: SamplerState,
    index: jax.Array,
    config: SamplerConfig,
    sequences: Sequences | None,
    helper: Helper | None,
) -> SamplerState:
    plan, x_init = begun
    diffusion = diffusion.within(arrange(x_init, sequences))
    return take_step(diffusion, params, plan, state, index, config, helper)


_plan = jax.jit(plan_generation, static_argnames=("diffusion", "config"))
_prepared = jax.jit(with_prepared_noise, static_argnames="diffusion")
