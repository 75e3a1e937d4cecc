"""Texts under the judge: from the model's tokens to the judge's, scores, and what had to be done for it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.evaluating.output import Output, digest_of, npz
from experiments.evaluating.subject import Subject
from experiments.evaluating.texts import read_texts
from sdtt_jax.config import require
from sdtt_jax.data import Tokenizer
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.bootstrap import Interval, bootstrap, exp_median, exp_ratio, mean
from sdtt_jax.evaluation.diversity import distinct_n, repeated_ngram_rate, self_bleu
from sdtt_jax.evaluation.generation import unigram_entropy
from sdtt_jax.evaluation.judging import (
    Scores,
    check_vocabulary,
    first_document,
    make_rows,
    retokenise,
    same_tokens,
    score_texts,
    token_nll,
)
from sdtt_jax.evaluation.mauve import mauve_score, text_features
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.parallel import processes
from sdtt_jax.paths import as_path, write_bytes

Json = dict[str, Any]
NGRAMS = (1, 2, 3)
REPEATED = 4
# Logits are dumped for texts this small.
MOST_LOGITS = 1 << 28


class Judged(NamedTuple):
    """Texts as the judge read them.

    Attributes:
      texts: what was judged, in the model's tokens, cut where they end.
      seen: the same in the judge's tokens.
      scores: the judge's; None without a judge.
      facts: what had to be done, JSON-ready.
    """

    texts: list[np.ndarray]
    seen: list[np.ndarray]
    scores: Scores | None
    facts: Json


def judge(
    subject: Subject, tokens: np.ndarray, tokenizer: Tokenizer | None, given: int = 0
) -> Judged:
    """Scores texts `[texts, length]` int32, of which the first `given` tokens are a prompt."""
    settings = subject.settings
    texts = [np.asarray(row, np.int32) for row in tokens]
    facts: Json = {}
    if tokenizer is not None:
        ended = [first_document(row, tokenizer.bos_id, tokenizer.eos_id, given) for row in texts]
        facts["texts_that_end_early"] = sum(
            len(short) < len(row) for short, row in zip(ended, texts, strict=True)
        )
        facts["ends"] = settings.ends
        if settings.ends == "cut":
            texts = ended
    if subject.judge is None:
        return Judged(texts, texts, None, facts)
    seen, starts, retokenised = _for_judge(subject.judge, texts, tokenizer, given)
    facts["retokenised"] = retokenised
    check_vocabulary(subject.judge.network, seen)
    scores = score_texts(
        subject.judge.network,
        subject.judge.params,
        seen,
        bos_id=first_token(subject, subject.judge),
        batch_size=settings.batch_size,
        given=starts,
    )
    facts |= {
        "scored_tokens": int(scores.scored.sum()),
        "texts_in_several_windows": int((scores.windows > 1).sum()),
        "first_token": settings.first_token,
    }
    return Judged(texts, seen, scores, facts)


def first_token(subject: Subject, model: CausalModel) -> int | None:
    """BOS, or None where the first token is given."""
    if subject.settings.first_token == "given":
        return None
    if model.tokenizer is None:
        raise ConfigError(
            f"{model.facts['path']} comes without a tokenizer, so that its BOS is not known; add "
            "--first_token=given."
        )
    return model.tokenizer.bos_id


def _for_judge(
    model: CausalModel, texts: list[np.ndarray], tokenizer: Tokenizer | None, given: int
) -> tuple[list[np.ndarray], np.ndarray, bool]:
    """The texts in the judge's tokens, where each prompt ends, and whether they went through text."""
    starts = np.full(len(texts), given)
    if tokenizer is None or model.tokenizer is None or same_tokens(tokenizer, model.tokenizer):
        return texts, starts, False
    convert = functools.partial(retokenise, source=tokenizer, target=model.tokenizer)
    if given == 0:
        return [convert(text) for text in texts], starts, True
    # Prompt and continuation each by itself: a token that spans both would be scored as one of them.
    pairs = [(convert(text[:given]), convert(text[given:])) for text in texts]
    return (
        [np.concatenate(pair) for pair in pairs],
        np.array([len(prompt) for prompt, _ in pairs]),
        True,
    )


def quality(subject: Subject, judged: Judged, given: int = 0) -> Json:
    """Perplexity with entropy beside it, and how much the texts repeat themselves and each other.

    The prompt's tokens count in none of it.
    """
    seed = subject.settings.seed
    texts = [text[given:] for text in judged.texts]
    ids = [text.tolist() for text in texts]
    result: Json = {"num_texts": len(texts)}
    if judged.scores is not None:
        scores = judged.scores
        result |= interval("gen_ppl", bootstrap(exp_ratio, scores.nll, scores.scored, seed=seed))
        result |= interval("gen_ppl_median", bootstrap(exp_median, scores.per_token, seed=seed))
    result |= interval("entropy", bootstrap(mean, unigram_entropy(texts), seed=seed))
    for n in NGRAMS:
        if any(len(text) >= n for text in texts):
            result[f"distinct_{n}"] = distinct_n(ids, n)
    if len(texts) > 1:
        result["self_bleu"] = self_bleu(ids)
    long = [text for text in texts if len(text) >= REPEATED]
    if long:
        rates = np.concatenate([repeated_ngram_rate(text[None], REPEATED) for text in long])
        result["repeated_4gram_rate"] = float(rates.mean())
    return result | judged.facts


def mauve(subject: Subject, written: Judged, real: Judged) -> Json:
    """MAUVE of generated against real texts, prompts included, on the judge's features."""
    if subject.judge is None:
        return {}
    features = []
    for texts in (written.seen, real.seen):
        lengths = np.array([len(text) for text in texts])
        padded = np.zeros((len(texts), lengths.max()), np.int32)
        for row, text in zip(padded, texts, strict=True):
            row[: len(text)] = text
        features.append(
            text_features(
                subject.judge.network,
                subject.judge.params,
                padded,
                subject.settings.batch_size,
                lengths=lengths,
            )
        )
    score = mauve_score(*features, seed=subject.settings.seed)
    return {"mauve": score.value, "mauve_buckets": len(score.p), "mauve_real_texts": len(real.seen)}


def interval(name: str, found: Interval) -> Json:
    """`name`, `name_low` and `name_high`."""
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def judge_file(
    subject: Subject, output: Output, path: str, arrays: str | None, say: Callable[[str], None]
) -> None:
    """The suite "judge": texts of a file of JSON lines under the judge.

    Args:
      subject: its judge.
      output: gets the item.
      path: JSON lines with "text", or with "tokens" of the judge's vocabulary.
      arrays: a file for -log p of every token and, if they are few, the logits; None for none.
      say: hears the figures.
    """
    model = subject.judge
    if model is None:
        raise ConfigError("--suite=judge needs a --judge.")
    texts = list(read_texts(path, model.tokenizer))
    require(len(texts) > 0, f"--texts={path} holds no texts.")
    check_vocabulary(model.network, texts)
    settings = subject.settings
    bos_id = first_token(subject, model)
    inputs = {
        "texts": digest_of(texts),
        "judge": subject.judge_identity,
        "first_token": settings.first_token,
        "ends": settings.ends,
        "seed": settings.seed,
    }

    def compute() -> Json:
        judged = judge(subject, texts, model.tokenizer)  # type: ignore[arg-type]
        return {"file": path, **quality(subject, judged)}

    result = output.item("judge/texts", inputs, compute)
    say(
        f"  {result['num_texts']} texts: perplexity {result['gen_ppl']:.2f} ({result['gen_ppl_low']:.2f}–"
        f"{result['gen_ppl_high']:.2f}), entropy {result['entropy']:.3f}"
    )
    if arrays is not None:
        _write_arrays(subject, model, texts, bos_id, arrays)


def _write_arrays(
    subject: Subject,
    model: CausalModel,
    texts: Sequence[np.ndarray],
    bos_id: int | None,
    path: str,
) -> None:
    limit = model.network.max_length
    rows, owners = make_rows(texts, bos_id=bos_id, given=0, limit=limit)
    nll = token_nll(model.network, model.params, rows, subject.settings.batch_size)
    found = {"nll": nll, "scored": rows.scored, "text": owners}
    if rows.inputs.size * model.config.vocab_size <= MOST_LOGITS:
        found["logits"] = processes.to_host(model.logits(jnp.asarray(rows.inputs)))
    if processes.is_first():
        write_bytes(as_path(path), npz(found))
