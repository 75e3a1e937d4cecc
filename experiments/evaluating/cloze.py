"""The suite "lambada": the ends of texts, by likelihood and by the most probable tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evaluating.judging import interval
from experiments.evaluating.output import Output, digest_of
from experiments.evaluating.subject import Subject
from sdtt_jax import processes
from sdtt_jax.configs import require
from sdtt_jax.errors import DataError
from sdtt_jax.evaluation.bootstrap import bootstrap, exp_mean, mean
from sdtt_jax.evaluation.cloze import causal_scores, greedy_hits, suffix_bounds
from sdtt_jax.evaluation.continuations import Cloze, Continuation, Layout, encode
from sdtt_jax.interchange.causal import CausalModel
from sdtt_jax.interchange.model import Model
from sdtt_jax.keys import purpose_key
from sdtt_jax.training.progress import make_progress

Json = dict[str, Any]
Say = Callable[[str], None]
# Padding at the end is invisible to a causal network and saves it compilations.
CAUSAL_MULTIPLE = 32


def lambada(subject: Subject, output: Output, path: str, say: Say) -> None:
    """Runs the suite: perplexity of the last words, and how often the most probable tokens are right.

    Args:
      subject: model and baseline.
      output: gets the items.
      path: JSON lines with "text", whose last word is to be found, or with "prefix" and "suffix".
      say: hears the figures.
    """
    clozes = read_clozes(path)
    model = subject.model
    if isinstance(model, Model):
        _denoiser(subject, model, output, encode(model.text_tokenizer, clozes), path, say)
        if subject.baseline is not None and subject.baseline_identity is not None:
            items = encode(subject.baseline.text_tokenizer, clozes)
            _causal(subject, subject.baseline, subject.baseline_identity, output, items, path, say)
    else:
        items = encode(model.text_tokenizer, clozes)
        _causal(subject, model, subject.identity, output, items, path, say)


def read_clozes(path: str) -> list[Cloze]:
    """Of a file of JSON lines.

    Raises:
      DataError: naming the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    found = [_cloze(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    require(len(found) > 0, f"--clozes={path} holds no texts.")
    return found


def _cloze(line: str, where: str) -> Cloze:
    try:
        record = json.loads(line)
    except ValueError:
        raise DataError(f"{where} is not JSON.") from None
    record = record if isinstance(record, dict) else {}
    prefix, suffix, text = (record.get(name) for name in ("prefix", "suffix", "text"))
    if isinstance(prefix, str) and isinstance(suffix, str):
        return Cloze(prefix, suffix)
    if isinstance(text, str) and len(text.split()) > 1:
        before, word = text.rstrip().rsplit(maxsplit=1)
        return Cloze(before, f" {word}")
    raise DataError(
        f'{where} has neither "prefix" and "suffix", nor a "text" of two words or more.'
    )


def _denoiser(
    subject: Subject,
    model: Model,
    output: Output,
    items: list[Continuation],
    path: str,
    say: Say,
) -> None:
    settings, tokenizer = subject.settings, model.text_tokenizer
    layout = Layout(
        bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, max_length=model.config.length
    )

    def compute() -> Json:
        bounds = suffix_bounds(
            model.denoiser,
            model.params,
            items,
            purpose_key(settings.seed, "evaluate.lambada"),
            model.schedule,
            layout,
            num_samples=settings.num_maskings,
            batch_size=settings.batch_size,
            progress=_progress("lambada/bound"),
        )
        hits = greedy_hits(
            model.denoiser,
            model.params,
            items,
            model.schedule,
            layout,
            batch_size=settings.batch_size,
            progress=_progress("lambada/greedy"),
        )
        return _result("diffusion", path, bounds, hits, settings.seed)

    inputs = _inputs(subject, subject.identity, items) | {"num_maskings": settings.num_maskings}
    _say(say, "bound", output.item("lambada/bound", inputs, compute))


def _causal(
    subject: Subject,
    model: CausalModel,
    identity: Json,
    output: Output,
    items: list[Continuation],
    path: str,
    say: Say,
) -> None:
    settings = subject.settings
    layout = Layout(
        bos_id=model.text_tokenizer.bos_id,
        max_length=model.network.max_length,
        multiple=CAUSAL_MULTIPLE,
    )

    def compute() -> Json:
        scores = causal_scores(
            model.network,
            model.params,
            items,
            layout,
            batch_size=settings.batch_size,
            progress=_progress("lambada/autoregressive"),
        )
        return _result("autoregressive", path, scores.nll, scores.greedy, settings.seed)

    inputs = _inputs(subject, identity, items)
    _say(say, "autoregressive", output.item("lambada/autoregressive", inputs, compute))


def _inputs(subject: Subject, identity: Json, items: list[Continuation]) -> Json:
    return {
        "model": {k: identity[k] for k in ("digest", "precision")},
        "texts": digest_of([ids for item in items for ids in item]),
        "batch_size": subject.settings.batch_size,
        "seed": subject.settings.seed,
    }


def _result(kind: str, path: str, nll: np.ndarray, hits: np.ndarray, seed: int) -> Json:
    return {
        "kind": kind,
        "source": path,
        "num_texts": len(nll),
        # Per text, not per token, as the reference has it.
        **interval("perplexity", bootstrap(exp_mean, nll, seed=seed)),
        **interval("accuracy", bootstrap(mean, hits.astype(np.float64), seed=seed)),
    }


def _say(say: Say, name: str, result: Json) -> None:
    say(
        f"  {name}: perplexity {result['perplexity']:.2f}, accuracy {result['accuracy']:.3f} "
        f"({result['accuracy_low']:.3f}–{result['accuracy_high']:.3f})"
    )


def _progress(title: str) -> Callable[[int, int], None] | None:
    """Rows done, for a person at the terminal."""
    if not processes.is_first():
        return None
    made: list[Any] = []

    def tell(done: int, total: int) -> None:
        if not made:
            made.append(make_progress(title, total))
            made[0].__enter__()
            made[0].update(0)
        made[0].update(done, {})
        if done >= total:
            made[0].__exit__(None, None, None)

    return tell
