"""A loaded model: parameters, tokenizer and noise schedule, and what one does with them."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from sdtt_jax.categorical import NEG_INFINITY
from sdtt_jax.configs import from_mapping, require
from sdtt_jax.data import Tokenizer, load_tokenizer
from sdtt_jax.diffusion.masking import subs_log_probs
from sdtt_jax.diffusion.nelbo import nelbo
from sdtt_jax.diffusion.sampler import SamplerConfig, SamplerState, prior_sample, sample
from sdtt_jax.diffusion.schedule import Schedule, ScheduleConfig, make_schedule
from sdtt_jax.errors import CheckpointError
from sdtt_jax.models import Denoiser, DenoiserConfig, make_denoiser
from sdtt_jax.paths import absolute, as_path
from sdtt_jax.training.checkpoint import load_params

FINAL = "final"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A denoiser with its parameters.

    Attributes:
      denoiser: the network, as pure functions.
      params: its parameters.
      schedule: the noise schedule that it was trained with.
      tokenizer: text to ids and back.
      facts: what was stored beside the parameters (stage, round, dt, …), and `path`.
    """

    denoiser: Denoiser
    params: Any = dataclasses.field(repr=False)
    schedule: Schedule = dataclasses.field(repr=False)
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    facts: dict[str, Any]

    @property
    def config(self) -> DenoiserConfig:
        return self.denoiser.config

    def logits(self, tokens: jax.Array, sigma: float = 0.0) -> jax.Array:
        """`[B, L]` int32 → `[B, L, V]` float32, V with MASK and without padding."""
        return self._logits(self.params, jnp.asarray(tokens), jnp.float32(sigma))

    def log_probs(self, x_t: jax.Array, sigma: float = 0.0) -> jax.Array:
        """SUBS log-probabilities `[B, L, V]` float32, -inf where a token is impossible."""
        x_t = jnp.asarray(x_t)
        log_probs = subs_log_probs(self.logits(x_t, sigma), x_t, self.denoiser.mask_id)
        return jnp.where(log_probs > 0.5 * NEG_INFINITY, log_probs, -jnp.inf)

    def sample(
        self,
        key: jax.Array,
        num_samples: int,
        num_steps: int,
        prompt: str | None = None,
        *,
        batch_size: int = 32,
        **options: Any,
    ) -> jax.Array:
        """Texts `[num_samples, L]` int32; `tokenizer.decode` turns a row into text.

        Args:
          key: PRNG key.
          num_samples: how many.
          num_steps: reverse steps.
          prompt: text that every sample begins with.
          batch_size: texts at once; what memory allows.
          **options: further fields of `SamplerConfig` (temperature, top_k, top_p, time_grid, mode).

        Raises:
          ConfigError: the prompt is longer than the model's sequences, or an option is out of range.
        """
        config = SamplerConfig(num_steps=num_steps, **options)
        require(num_samples > 0, f"num_samples must be positive, not {num_samples}.")
        require(batch_size > 0, f"batch_size must be positive, not {batch_size}.")
        tokens = jnp.zeros((self.config.length,), jnp.int32)
        fixed = jnp.zeros((self.config.length,), bool)
        if prompt:
            ids = self.tokenizer.encode(prompt)
            require(
                len(ids) <= self.config.length,
                f"prompt has {len(ids)} tokens, the model's sequences {self.config.length}; shorten it.",
            )
            tokens, fixed = tokens.at[: len(ids)].set(ids), fixed.at[: len(ids)].set(True)
        size = min(num_samples, batch_size)
        mask_id = self.denoiser.mask_id
        x_init = prior_sample(size, self.config.length, mask_id, tokens[None], fixed[None])
        batches = range(math.ceil(num_samples / size))
        texts = [self.denoise(jax.random.fold_in(key, i), x_init, config).x for i in batches]
        return jnp.concatenate(texts)[:num_samples]

    def denoise(self, key: jax.Array, x_init: jax.Array, config: SamplerConfig) -> SamplerState:
        """Fills the MASK positions of `x_init: [B, L]` int32: the texts, and the network calls."""
        return _denoise(self.denoiser, self.params, key, x_init, self.schedule, config)

    def score(self, tokens: jax.Array, key: jax.Array, num_samples: int = 1) -> jax.Array:
        """Monte Carlo estimate of the NELBO of each sequence: `[B]` float32, nats per token.

        Args:
          tokens: `[B, L]` int32.
          key: PRNG key.
          num_samples: maskings per sequence.
        """
        tokens = jnp.asarray(tokens)
        estimates = [
            _score(self.denoiser, self.params, tokens, jax.random.fold_in(key, i), self.schedule)
            for i in range(num_samples)
        ]
        return jnp.stack(estimates).mean(axis=0)

    @functools.cached_property
    def _logits(self) -> Any:
        @jax.jit
        def logits(params: Any, tokens: jax.Array, sigma: jax.Array) -> jax.Array:
            sigmas = jnp.broadcast_to(sigma, tokens.shape[:1])
            hidden = self.denoiser.hidden(params, tokens, sigmas)
            return self.denoiser.logits(params, hidden)[..., : self.denoiser.mask_id + 1]

        return logits


def load(path: str | Path) -> Model:
    """Loads a denoiser that a run delivered.

    Args:
      path: a run's directory (its last finished round, or else its teacher), a round's, the teacher's,
        or a `final` folder. The tokenizer is found in a folder above.

    Raises:
      CheckpointError: nothing there, no denoiser, no tokenizer, or damaged.
    """
    folder = _delivered(as_path(path))
    params, facts = load_params(folder)
    if facts.get("kind") != "denoiser":
        raise CheckpointError(
            f"{folder} holds {facts.get('kind') or 'no model of this library'}, not a denoiser; give a "
            "round, a teacher, or a run's directory."
        )
    above = (p / "tokenizer" for p in absolute(folder).parents)
    tokenizer_dir = next((p for p in above if p.is_dir()), None)
    if tokenizer_dir is None:
        raise CheckpointError(
            f"There is no tokenizer folder above {folder}; copy the run's tokenizer/ beside it."
        )
    return Model(
        make_denoiser(from_mapping(DenoiserConfig, facts["model"], "model")),
        params,
        make_schedule(from_mapping(ScheduleConfig, facts["schedule"], "schedule")),
        load_tokenizer(tokenizer_dir),
        facts | {"path": str(folder)},
    )


def _delivered(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    rounds = sorted((path / "rounds").glob(f"*/{FINAL}"))
    candidates = [*rounds[-1:], path / "teacher" / FINAL, path / FINAL]
    if path.name != FINAL and not any(p.is_dir() for p in candidates):
        raise CheckpointError(
            f"{path} holds no finished model (no {FINAL} folder); give a run, a round or a teacher."
        )
    return next((p for p in candidates if p.is_dir()), path)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _denoise(
    denoiser: Denoiser,
    params: Any,
    key: jax.Array,
    x_init: jax.Array,
    schedule: Schedule,
    config: SamplerConfig,
) -> SamplerState:
    state, _ = sample(denoiser, params, key, x_init, schedule, config)
    return state


@functools.partial(jax.jit, static_argnums=(0, 4))
def _score(
    denoiser: Denoiser, params: Any, tokens: jax.Array, key: jax.Array, schedule: Schedule
) -> jax.Array:
    return nelbo(denoiser, params, tokens, key, schedule)
