"""A loaded model: parameters, tokenizer and noise schedule, and what one does with them."""

import dataclasses
import functools
import math
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sdtt_jax.categorical import NEG_INFINITY
from sdtt_jax.configs import from_mapping, require, to_mapping
from sdtt_jax.data import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from sdtt_jax.diffusion.masking import subs_log_probs
from sdtt_jax.diffusion.nelbo import nelbo
from sdtt_jax.diffusion.sampler import SamplerConfig, SamplerState, prior_sample, sample
from sdtt_jax.diffusion.schedule import Schedule, ScheduleConfig, make_schedule
from sdtt_jax.errors import CheckpointError
from sdtt_jax.interchange import hub
from sdtt_jax.interchange.hub import fetch
from sdtt_jax.interchange.published import is_published, read_published
from sdtt_jax.models import Denoiser, DenoiserConfig, make_denoiser
from sdtt_jax.paths import absolute, as_path, is_remote
from sdtt_jax.training import sharding as sh
from sdtt_jax.training.checkpoint import load_params

FINAL = "final"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A denoiser with its parameters.

    Attributes:
      denoiser: the network, as pure functions.
      params: its parameters.
      schedule: the noise schedule that it was trained with.
      tokenizer: text to ids and back; None for a published model whose vocabulary is not GPT-2's.
      facts: what was stored beside the parameters (stage, round, dt, …), and `path`.
    """

    denoiser: Denoiser
    params: Any = dataclasses.field(repr=False)
    schedule: Schedule = dataclasses.field(repr=False)
    tokenizer: Tokenizer | None = dataclasses.field(repr=False)
    facts: dict[str, Any]

    @property
    def config(self) -> DenoiserConfig:
        return self.denoiser.config

    @property
    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer, where text is asked for.

        Raises:
          CheckpointError: there is none.
        """
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.facts['path']} comes without a tokenizer: its vocabulary of "
                f"{self.config.vocab_size} is not GPT-2's, so that it has tokens and no text."
            )
        return self.tokenizer

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
            ids = self.text_tokenizer.encode(prompt)
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


def load_named(name: str, *, mesh: Mesh | None = None) -> Model:
    """`load` of what stands on a command line: a path, or "owner/name@revision"."""
    repository, at, revision = name.rpartition("@")
    if at and not is_remote(name) and not Path(name).exists() and REPOSITORY.fullmatch(repository):
        return load(repository, revision, mesh=mesh)
    return load(name, mesh=mesh)


def load(
    path: str | os.PathLike[str], revision: str | None = None, *, mesh: Mesh | None = None
) -> Model:
    """Loads a denoiser: one of ours, or one in the published layout, from a path or from the model hub.

    Args:
      path: of ours, a run's directory (its last finished round, or else its teacher), a round's, the
        teacher's, or a `final` folder, local or gs://…; the tokenizer is found in a folder above. Of
        published ones, a `.safetensors` file, a folder with `model.safetensors` (and perhaps
        `config.json`), or a repository of the hub, "owner/name"; their tokenizer is GPT-2's.
      revision: of a repository.
      mesh: spreads the parameters over it by the rules of training, each as it is read; the first device if
        None.

    Raises:
      CheckpointError: nothing there, no denoiser, no tokenizer, damaged, or contradicted by its config; names
        the file and the tensor.
    """
    text = os.fspath(path)
    is_repository = not is_remote(text) and not Path(text).exists() and REPOSITORY.fullmatch(text)
    if revision is not None and not is_repository:
        raise CheckpointError(f"revision={revision!r} is for repositories, and {text} is a path.")
    if is_repository:
        tensors, config = fetch(text, revision)
        where = f"{text}@{revision}" if revision else text
        return _published(tensors, config, where, mesh)
    found = as_path(text)
    if not is_remote(text) and is_published(found):
        return _published(found, None, text, mesh)
    return _own(found, mesh)


def load_small_student(loss: str = "kld", round: int = 7) -> Model:
    """The paper's small student after `round` (1 to 7), distilled with "kld", "mse" or "tvd"."""
    return load(hub.STUDENTS, hub.student_revision(loss, round))


def load_scaling_student(size: str = "sm", round: int = 7) -> Model:
    """A student of the paper's scaling series: size "sm", "md" or "lg", round 1 to 7."""
    return load(hub.STUDENTS, hub.scaling_student_revision(size, round))


def load_scaling_teacher(size: str = "sm") -> Model:
    """A teacher of the paper's scaling series: size "sm", "md" or "lg"."""
    return load(hub.STUDENTS, hub.scaling_teacher_revision(size))


def load_mdlm_small() -> Model:
    """The MDLM teacher of the paper's small students."""
    return load(hub.MDLM)


def _own(path: Path, mesh: Mesh | None) -> Model:
    folder = _delivered(path)
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
    denoiser = make_denoiser(from_mapping(DenoiserConfig, facts["model"], "model"))
    if mesh is not None:
        params = jax.device_put(params, _shardings(denoiser, mesh))
    return Model(
        denoiser,
        params,
        make_schedule(from_mapping(ScheduleConfig, facts["schedule"], "schedule")),
        load_tokenizer(tokenizer_dir),
        facts | {"path": str(folder)},
    )


def _published(path: Path, config_path: Path | None, where: str, mesh: Mesh | None) -> Model:
    placement: dict[tuple[str, ...], Any] = {}

    def place(config: DenoiserConfig, at: tuple[str, ...], value: np.ndarray) -> jax.Array:
        if mesh is None:
            return jnp.asarray(value)
        if not placement:
            leaves = jax.tree_util.tree_leaves_with_path(_shardings(make_denoiser(config), mesh))
            placement.update({tuple(key.key for key in path): leaf for path, leaf in leaves})
        return jax.device_put(value, placement[at])

    config, params, facts = read_published(path, config_path, place)
    gpt2 = train_tokenizer(TokenizerConfig(kind="gpt2"), [])
    return Model(
        make_denoiser(config),
        params,
        make_schedule(ScheduleConfig()),
        gpt2 if gpt2.vocab_size == config.vocab_size else None,
        facts | {"kind": "denoiser", "schedule": to_mapping(ScheduleConfig()), "path": where},
    )


def _shardings(denoiser: Denoiser, mesh: Mesh) -> Any:
    return sh.tree_shardings(jax.eval_shape(denoiser.init, jax.random.key(0)), sh.RULES, mesh)


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
