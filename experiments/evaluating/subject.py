"""Whom an evaluation is of: the model, its judge, the causal model that it races against."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from experiments.evaluating.settings import Settings
from sdtt_jax.checkpoints.digests import params_digest
from sdtt_jax.config import require, to_mapping
from sdtt_jax.errors import CheckpointError, ConfigError
from sdtt_jax.interchange.load import load_named
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.parallel import processes
from sdtt_jax.paths import absolute
from sdtt_jax.reporting import write_report
from sdtt_jax.reporting.evaluations import EVALUATIONS

OWN_JUDGE = "own"
NO_JUDGE = "none"


@dataclasses.dataclass(frozen=True)
class Subject:
    """Models and settings.

    Attributes:
      settings: what is asked for.
      model: what is evaluated.
      judge: scores generated text; None if there is none.
      baseline: writes token by token beside the model; None if there is none.
    """

    settings: Settings
    model: Model | CausalModel
    judge: CausalModel | None
    baseline: CausalModel | None

    @property
    def is_causal(self) -> bool:
        return isinstance(self.model, CausalModel)

    @property
    def length(self) -> int:
        """Tokens of a text."""
        return self.settings.length or self.model.config.length

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the results are of."""
        return identity(self.model)

    @functools.cached_property
    def judge_identity(self) -> dict[str, Any] | None:
        return None if self.judge is None else identity(self.judge)

    @functools.cached_property
    def baseline_identity(self) -> dict[str, Any] | None:
        return None if self.baseline is None else identity(self.baseline)


def identity(model: Model | CausalModel) -> dict[str, Any]:
    """Path, kind, sizes, precision and the digest of the parameters; JSON-ready."""
    config = to_mapping(model.config)
    known = {k: v for k, v in model.facts.items() if k in ("stage", "round", "dt", "source")}
    return {
        "path": model.facts["path"],
        "kind": model.facts["kind"],
        "digest": params_digest(model.params),
        "precision": config["compute_dtype"],
        "config": config,
        "facts": known,
    }


def load_subject(
    settings: Settings, checkpoint: str | None, judge: str, baseline: str, mesh: Mesh | None
) -> Subject:
    """Loads what the names say.

    Args:
      settings: precisions.
      checkpoint: what is evaluated; None: the judge itself.
      judge: a path or repository; "own" is that of the model's run, if it has one; "none".
      baseline: likewise; "own" is the run's judge too, which is the causal baseline on the same text.
      mesh: where the parameters live; None is the first device.

    Raises:
      ConfigError: there is neither a checkpoint nor a judge.
      CheckpointError: a judge or baseline is not causal, or see `sdtt_jax.load`.
    """
    model = None
    if checkpoint is not None:
        model = load_named(checkpoint, mesh=mesh, compute_dtype=settings.precision or None)
    own = _own_judge(model)
    precision = settings.judge_precision or None
    found = _causal(judge, "judge", own, mesh, precision)
    if model is None:
        if found is None:
            raise ConfigError("--checkpoint is missing, and so is --judge; see --help.")
        model = found
    if settings.length:
        limit = model.config.length
        require(
            settings.length <= limit,
            f"length={settings.length} exceeds the model's {limit} tokens; shorten it.",
        )
    racing = _causal(baseline, "baseline", own, mesh, settings.precision or None)
    return Subject(settings, model, found, None if isinstance(model, CausalModel) else racing)


def _causal(
    name: str, flag: str, own: str | None, mesh: Mesh | None, precision: str | None
) -> CausalModel | None:
    if name == OWN_JUDGE:
        if own is None:
            return None
        name = own
    if name == NO_JUDGE:
        return None
    model = load_named(name, mesh=mesh, compute_dtype=precision)
    if not isinstance(model, CausalModel):
        raise CheckpointError(
            f"--{flag}={name} holds a denoiser; a {flag} is causal: a GPT-2, or a run's judge folder."
        )
    return model


def run_of(model: Model | CausalModel) -> Path | None:
    """The directory of the run that a model is of."""
    if model.facts.get("stage") is None:
        return None
    parents = absolute(model.facts["path"]).parents
    return next((folder for folder in parents if (folder / "config.json").is_file()), None)


def own_output(subject: Subject) -> Path:
    """Where results go if nobody says: into the model's run, where its report finds them.

    Raises:
      ConfigError: the model is not of a run.
    """
    root = run_of(subject.model)
    if root is None:
        raise ConfigError("--output is missing; name a JSON file.")
    facts = subject.model.facts
    name = f"round_{facts['round']:02d}" if facts.get("round") else facts["stage"]
    return root / EVALUATIONS / f"{name}.json"


def update_report(path: Path) -> None:
    """Writes the report of a run again, if it has one and `path` is among what its report shows."""
    report = path.parent.parent / "report.html"
    if path.parent.name == EVALUATIONS and processes.is_first() and report.exists():
        write_report(path.parent.parent)


def _own_judge(model: Model | CausalModel | None) -> str | None:
    """The judge of the run that a model is of."""
    root = None if model is None else run_of(model)
    if root is None or not (root / "judge" / "final").is_dir():
        return None
    return str(root / "judge")
