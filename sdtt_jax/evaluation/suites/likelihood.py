"""The suite "likelihood": bounds of held-out text by several estimators; a causal model's exact value."""

import math
from collections.abc import Sequence

import numpy as np

from sdtt_jax.config import require
from sdtt_jax.data import Tokenizer
from sdtt_jax.diffusion.estimators import BoundConfig
from sdtt_jax.evaluation.bootstrap import Interval, bootstrap, ratio, shares, with_interval
from sdtt_jax.evaluation.judge import in_judge_tokens, score_texts
from sdtt_jax.evaluation.likelihood import Bounds, text_bounds
from sdtt_jax.evaluation.quality import perplexity
from sdtt_jax.evaluation.record import Json, Record
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.texts import held_out, held_out_name
from sdtt_jax.evaluation.unknown import log_unknown, unknown_tokens
from sdtt_jax.keys import purpose_key
from sdtt_jax.model.base import same_ids
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.ops.sequences import single_texts


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite; finished items are not computed again."""
    tokens = held_out(subject)
    model = subject.model
    log_unknown(record, model.tokenizer, tokens, "held-out text")
    if isinstance(model, Model) and model.diffusion.noise_kind is not None:
        record.log("  likelihood: none, the model is a function of its noise")
    elif isinstance(model, Model):
        for estimator in subject.settings.estimators:
            _bound(subject, model, record, estimator, tokens)
    if subject.causal is not None:
        _exact(subject, subject.causal, record, tokens)


def _bound(
    subject: Subject, model: Model, record: Record, estimator: str, tokens: np.ndarray
) -> None:
    settings, name = subject.settings, f"likelihood/{estimator}"
    config = BoundConfig(estimator, settings.num_maskings)
    inputs = subject.inputs(model, [tokens])
    inputs |= {"estimator": estimator, "num_maskings": settings.num_maskings}

    def compute() -> Json:
        key = purpose_key(settings.seed, "evaluate.bound")
        batches = text_bounds(model, tokens, key, config, batch_size=settings.batch_size)
        estimates = record.batches(
            name,
            inputs,
            batches,
            Bounds._asdict,
            tokens=tokens.size * settings.num_maskings // len(batches),
        )
        bounds = Bounds(**estimates)
        draws = bounds.masked.size
        require(
            bool(bounds.masked.any()),
            f"{name}: none of the {draws} draws masked a token, so they say nothing about the text; take "
            "more texts (--held_out_texts, or a run's evaluation.validation_sequences), more --num_maskings, "
            "or --estimators=low-variance.",
        )
        return summary(bounds.nelbo, settings.seed, bounds.counted) | {
            "empty_draws": float((bounds.masked == 0).mean()),
            "kind": "diffusion",
            "estimator": estimator,
            **_text(subject, tokens),
        }

    result = record.item(name, inputs, compute, _source(subject))
    line = f"  {estimator}: perplexity at most {with_interval(result, 'perplexity', 3)}, "
    line += f"{result['bits_per_token']:.4f} bits per token"
    if result["masking_error"] is not None:
        line += f" (masking error {result['masking_error'] / math.log(2):.4f})"
    if result.get("empty_draws"):
        line += f"; {result['empty_draws']:.0%} of the draws masked nothing"
    record.log(line)


def _exact(subject: Subject, model: CausalModel, record: Record, tokens: np.ndarray) -> None:
    """The exact value, in nats per token of the evaluated model's tokenizer."""
    settings, packed = subject.settings, subject.model.sequences
    tokenizer = subject.model.tokenizer
    foreign = not same_ids(tokenizer, model.tokenizer)

    def compute() -> Json:
        texts, prompts = single_texts(tokens, packed)
        seen, starts = texts, prompts
        if foreign:
            reading = in_judge_tokens(model, texts, tokenizer, "keep", prompts)
            seen, starts = reading.seen, reading.starts
        scores = score_texts(
            model,
            seen,
            batch_size=settings.batch_size,
            first_token=settings.first_token,
            given=starts,
        )
        if foreign and tokenizer is not None:
            counts = counted_tokens(reading.written, tokenizer)
            first = (prompts == 0) & (settings.first_token == "given")
            scores = scores._replace(scored=np.maximum(counts - first, 0))
        nats = Interval(*(math.log(value) for value in perplexity(scores, seed=settings.seed)))
        facts = {"kind": "autoregressive", "estimator": "exact", **_text(subject, tokens)}
        return _measures(nats) | facts

    inputs = subject.inputs(model, [tokens]) | {"first_token": settings.first_token}
    result = record.item("likelihood/autoregressive", inputs, compute, _source(subject))
    record.log(
        f"  autoregressive: perplexity {with_interval(result, 'perplexity', 3)}, "
        f"{result['bits_per_token']:.4f} bits per token" + " of the evaluated model" * foreign
    )


def counted_tokens(texts: Sequence[np.ndarray], tokenizer: Tokenizer) -> np.ndarray:
    """Tokens of texts, without BOS and EOS at their ends, which `retokenise` leaves out: `[texts]` int64."""
    special = (tokenizer.bos_id, tokenizer.eos_id)
    inner = [np.flatnonzero(~np.isin(text, special)) for text in texts]
    return np.array([ids[-1] - ids[0] + 1 if len(ids) else 0 for ids in inner], np.int64)


def summary(estimates: np.ndarray, seed: int, counted: np.ndarray | None = None) -> Json:
    """The measures of estimates `[texts, maskings]` float64, nats per token of each text.

    All tokens have the same weight, as in a causal model's perplexity, so that of a text is its number of
    tokens, `counted: [texts]`; None: all texts have the same number.

    The interval is over texts, and at least as wide as `masking_error` makes it. That is the estimator's own
    standard error for these very texts, from the scatter of the mean over tokens between maskings. With many
    texts, the interval includes it anyway.
    """
    maskings = estimates.shape[1]
    share = shares(np.ones(len(estimates)) if counted is None else counted)
    means = (estimates * share[:, None]).mean(axis=0)
    own = means.std(ddof=1) / math.sqrt(maskings) if maskings > 1 else None
    # Texts without such tokens are left out, so that no resample consists of them alone.
    kept = share > 0
    weighted = estimates.mean(axis=1) * share
    nats = bootstrap(ratio, weighted[kept], share[kept], seed=seed)
    if own is not None:
        nats = nats.widened(own, maskings)
        nats = nats._replace(low=max(nats.low, 0.0))  # as -log p is not negative
    return {**_measures(nats), "masking_error": own, "num_maskings": maskings}


def _measures(nats: Interval) -> Json:
    """Nats and bits per token, and perplexity, each with its interval."""
    with np.errstate(over="ignore"):
        perplexity = Interval(*np.exp(nats).tolist())
    bits = Interval(*(value / math.log(2) for value in nats))
    return nats.named("nelbo") | perplexity.named("perplexity") | bits.named("bits_per_token")


def _source(subject: Subject) -> Json:
    """Where the text is from; of a file it is the first sequences, of a run's split some spread over it."""
    selection = "first" if subject.settings.held_out else "spread"
    return {"source": held_out_name(subject), "selection": selection}


def _text(subject: Subject, tokens: np.ndarray) -> Json:
    return _source(subject) | {
        "num_texts": len(tokens),
        "length": int(tokens.shape[1]),
        "resampled": "sequences, as if independent",
        "unknown_tokens": unknown_tokens(subject.model.tokenizer, tokens),
    }
