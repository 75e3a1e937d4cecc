"""The models of one evaluation: the subject, its judge and its causal baseline."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from sdtt_jax.config import require, to_mapping
from sdtt_jax.diffusion.decoders import parse_mode
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.evaluation.record import Json, digest_of
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.interchange.load import load
from sdtt_jax.keys import unusual_generator
from sdtt_jax.model.base import as_helper_of
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.generation import begin
from sdtt_jax.model.learnt import with_stored_schedule
from sdtt_jax.model.masked import Model

OWN = "own"
NONE = "none"


def text_ends(model: Model | CausalModel, settings: Settings) -> str:
    """Whether a model's texts are measured whole ("keep") or end at their first EOS ("cut").

    As the settings say; always "cut" for a model of sequences with padding, where what follows the first EOS
    is no text.
    """
    sequences = model.sequences
    return "cut" if sequences is not None and sequences.has_padding else settings.ends


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a suite measures: the models, the settings and the data."""

    model: Model | CausalModel  # the model that is evaluated
    settings: Settings  # what is asked for
    # The model that scores generated text; None for none.
    judge: CausalModel | None = None
    # A causal model to compare a denoiser's texts with; None for none.
    baseline: CausalModel | None = None
    # The prepared data of the model's run, whose validation split is held-out text unless the settings name
    # another; None for none.
    data: Path | None = None
    # Whether held-out text is judged in addition to the model's texts. All models of a run share it, so the
    # run judges it only with the first teacher.
    real_text: bool = True
    helper: Model | CausalModel | None = None  # the second model of a decoder that needs one
    # In one line, which of the models asked for are missing, and why; empty if none are.
    missing: str = ""

    @property
    def length(self) -> int:
        """Tokens of a text."""
        return self.settings.length or int(self.model.config.length)

    @property
    def ends(self) -> str:
        """Where the texts of the model, and those compared with them, end: see `text_ends`."""
        return text_ends(self.model, self.settings)

    def denoiser(self, suite: str) -> Model:
        """The model, for a suite that measures only denoisers; `ConfigError` if it is causal."""
        if not isinstance(self.model, Model):
            raise ConfigError(f"--suite={suite} is for denoisers; leave it out for a causal model.")
        return self.model

    def inputs(
        self, model: Model | CausalModel, arrays: Iterable[np.ndarray], name: str = "texts"
    ) -> Json:
        """The inputs that determine a result of a model on some arrays, whose digest is named `name`."""
        own = {"batch_size": self.settings.batch_size, "seed": self.settings.seed}
        return {"model": model.fingerprint, name: digest_of(arrays)} | own | unusual_generator()

    def sampler(
        self, model: Model, num_steps: int, *, given: bool
    ) -> tuple[SamplerConfig, Model | CausalModel | None, Json]:
        """The model's sampler, the helper if its decoder needs one, and the inputs that say which they are.

        Args:
          model: the denoiser, with the schedule of `mode=learnt`.
          num_steps, given: as for `Settings.sampler`.
        """
        config = with_stored_schedule(self.settings.sampler(num_steps, given=given), model)
        inputs: Json = {"sampler": to_mapping(config)}
        if self.helper is None or not parse_mode(config.mode).decoder.helper:
            return config, None, inputs
        return config, self.helper, inputs | {"helper": self.helper.fingerprint}

    def check_samplers(self, steps: Sequence[int], modes: Sequence[str] = ()) -> None:
        """Raises `ConfigError` if a mode (by default the settings') cannot write texts in so many steps."""
        if not isinstance(self.model, Model):
            return
        for mode in modes or (self.settings.mode,):
            at = dataclasses.replace(self, settings=dataclasses.replace(self.settings, mode=mode))
            for num_steps in steps:
                config, helper, _ = at.sampler(self.model, num_steps, given=False)
                check_writes(self.model, config, helper, self.length)

    @property
    def causal(self) -> CausalModel | None:
        """The causal model: the evaluated one if it is causal, else the baseline."""
        return self.model if isinstance(self.model, CausalModel) else self.baseline


def check_writes(
    model: Model, config: SamplerConfig, helper: Model | CausalModel | None, length: int
) -> None:
    """Raises the `ConfigError` with which writing texts of so many tokens would end, but computes nothing."""
    x, other = np.zeros((1, length), np.int32), as_helper_of(helper, model)
    with model.on_mesh():
        begin.eval_shape(model.diffusion, model.params, x, config, model.sequences, other)


def load_subject(
    settings: Settings,
    checkpoint: str | None,
    judge: str,
    baseline: str,
    mesh: Mesh | None,
    given: Mapping[str, Any] | None = None,
) -> Subject:
    """Loads the named models; `Subject.data` is left to the caller.

    Args:
      settings: compute dtypes and length.
      checkpoint: what is evaluated; None: the judge itself.
      judge: a path or repository; "own" is the judge of the checkpoint's run, if it has one; "none".
      baseline: a path or repository; "own" is the judge of the checkpoint's run, a causal model of the same
        text; "none".
      mesh: where the parameters live; None is the first device.
      given: what the user specifies about the checkpoint's network, as `load` takes it.

    Raises:
      ConfigError: there is neither a checkpoint nor a judge, the length exceeds the model's, or one of the
        models is of every n-th token, for `mode=skeleton`.
      CheckpointError: a judge or baseline is not causal, or one of the models cannot be loaded.
    """
    compute_dtype = settings.compute_dtype or None
    model = None
    if checkpoint is not None:
        model = load(checkpoint, mesh=mesh, compute_dtype=compute_dtype, **given or {})
        if isinstance(model, CausalModel):
            model.require_whole_texts()
    run = None if model is None else model.run_folder
    own = str(run / "judge") if run is not None and (run / "judge" / "final").is_dir() else NONE

    # Judge and baseline are often the same.
    read = functools.cache(functools.partial(load, mesh=mesh))

    def causal(name: str, flag: str, compute_dtype: str | None) -> CausalModel | None:
        name = own if name == OWN else name
        if name == NONE:
            return None
        loaded = read(name, compute_dtype=compute_dtype)
        if isinstance(loaded, CausalModel):
            loaded.require_whole_texts()
            return loaded
        raise CheckpointError(
            f"--{flag}={name} holds a denoiser; a {flag} is causal: smollm2, a GPT-2, a run's judge folder."
        )

    scorer = causal(judge, "judge", settings.judge_compute_dtype or None)
    if model is None:
        if scorer is None:
            raise ConfigError("--checkpoint is missing, and so is --judge; see --help.")
        model = scorer
    limit = model.config.length
    require(
        settings.length <= limit,
        f"length={settings.length} exceeds the model's {limit} tokens; reduce it.",
    )
    beside = causal(baseline, "baseline", compute_dtype) if isinstance(model, Model) else None
    asked = {"judge": judge} | ({"baseline": baseline} if isinstance(model, Model) else {})
    lacks = [flag for flag, name in asked.items() if (name, own) == (OWN, NONE)]
    missing = ""
    if lacks:
        why = f"{model.facts['path']} belongs to no run" if run is None else f"{run} has no judge"
        flags = " and ".join(f"--{flag}" for flag in lacks)
        missing = f"no {' and no '.join(lacks)}: {why}; name what you want with {flags}"
    return Subject(model, settings, scorer, beside, missing=missing)
