"""The suite "likelihood": bounds of held-out text by several estimators; a causal model's exact value."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.evaluating.judging import first_token, interval
from experiments.evaluating.output import Output, digest_of
from experiments.evaluating.progress import tracked
from experiments.evaluating.subject import Subject
from experiments.evaluating.texts import held_out, held_out_name
from sdtt_jax.evaluation.batches import batch_rows, batches, run_batch
from sdtt_jax.evaluation.bootstrap import Interval, bootstrap, exp_ratio, mean
from sdtt_jax.evaluation.bounds import bound_estimates
from sdtt_jax.evaluation.judging import score_texts
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model

Json = dict[str, Any]
Say = Callable[[str], None]


def likelihood(subject: Subject, output: Output, say: Say) -> None:
    """Runs the suite; finished items are not computed again."""
    tokens = held_out(subject)
    text = {
        "source": held_out_name(subject),
        "num_texts": len(tokens),
        "length": int(tokens.shape[1]),
    }
    model = subject.model
    if isinstance(model, Model):
        for estimator in subject.settings.estimators:
            _bound(subject, model, output, estimator, tokens, text, say)
        if subject.baseline is not None and subject.baseline_identity is not None:
            _exact(subject, subject.baseline, subject.baseline_identity, output, tokens, text, say)
    else:
        _exact(subject, model, subject.identity, output, tokens, text, say)


def _bound(
    subject: Subject,
    model: Model,
    output: Output,
    estimator: str,
    tokens: np.ndarray,
    text: Json,
    say: Say,
) -> None:
    settings = subject.settings
    name = f"likelihood/{estimator}"
    size = batch_rows(model.params, min(settings.batch_size, len(tokens)))
    key = purpose_key(settings.seed, "evaluate.bound")
    function = bound_estimates(
        model.diffusion,
        key,
        estimator=estimator,
        num_maskings=settings.num_maskings,
    )
    inputs = {
        "model": {k: subject.identity[k] for k in ("digest", "precision")},
        "texts": digest_of([tokens]),
        "estimator": estimator,
        "num_maskings": settings.num_maskings,
        "batch_size": size,
        "seed": settings.seed,
    }

    def compute() -> Json:
        parts = []
        work = size * tokens.shape[1] * settings.num_maskings
        for index, rows in tracked(name, list(batches(tokens, size)), tokens=work):

            def estimates(index: int = index, rows: np.ndarray = rows) -> dict[str, np.ndarray]:
                return {"nelbo": run_batch(function, model.params, index, rows, size)}

            parts.append(output.part(name, inputs, index, estimates)["nelbo"])
        return summary(np.concatenate(parts), settings.seed) | {
            "kind": "diffusion",
            "estimator": estimator,
            **text,
        }

    result = output.item(name, inputs, compute)
    say(
        f"  {estimator}: perplexity at most {result['perplexity']:.3f} "
        f"({result['perplexity_low']:.3f}–{result['perplexity_high']:.3f}), "
        f"{result['bits_per_token']:.4f} bits per token"
    )


def summary(estimates: np.ndarray, seed: int) -> Json:
    """Of `[texts, maskings]` float64, nats per token.

    The interval is over texts. `masking_error` is how much of it is the estimator's own: the standard error
    that the maskings of these very texts leave, from the scatter of the mean over texts between them.
    """
    found = bootstrap(mean, estimates.mean(axis=1), seed=seed)
    maskings = estimates.shape[1]
    own = estimates.mean(axis=0).std(ddof=1) / math.sqrt(maskings) if maskings > 1 else None
    return {
        **_measures(found),
        "masking_error": own,
        "num_maskings": maskings,
    }


def _measures(nats: Interval) -> Json:
    """Nats and bits per token, and perplexity, each with its interval."""
    perplexity = Interval(*(math.exp(value) for value in nats))
    bits = Interval(*(value / math.log(2) for value in nats))
    return {
        **interval("nelbo", nats),
        **interval("perplexity", perplexity),
        **interval("bits_per_token", bits),
    }


def _exact(
    subject: Subject,
    model: CausalModel,
    identity: Json,
    output: Output,
    tokens: np.ndarray,
    text: Json,
    say: Say,
) -> None:
    settings = subject.settings
    inputs = {
        "model": {k: identity[k] for k in ("digest", "precision")},
        "texts": digest_of([tokens]),
        "first_token": settings.first_token,
        "seed": settings.seed,
    }

    def compute() -> Json:
        scores = score_texts(
            model.network,
            model.params,
            list(tokens),
            bos_id=first_token(subject, model),
            batch_size=settings.batch_size,
        )
        found = bootstrap(exp_ratio, scores.nll, scores.scored, seed=settings.seed)
        nats = Interval(*(math.log(value) for value in found))
        return {**_measures(nats), "kind": "autoregressive", "estimator": "exact", **text}

    result = output.item("likelihood/autoregressive", inputs, compute)
    say(
        f"  autoregressive: perplexity {result['perplexity']:.3f}, "
        f"{result['bits_per_token']:.4f} bits per token"
    )
