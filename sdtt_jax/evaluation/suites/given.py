"""The suite "judge": any texts, from a file, under the judge."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from sdtt_jax.config import require
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.bootstrap import with_interval
from sdtt_jax.evaluation.judge import (
    bos_of,
    in_judge_tokens,
    make_rows,
    reading_of,
    score_texts,
    token_nll,
)
from sdtt_jax.evaluation.quality import quality
from sdtt_jax.evaluation.record import Json, Record, digest_of, npz
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject, text_ends
from sdtt_jax.evaluation.texts import read_texts
from sdtt_jax.evaluation.unknown import log_unknown, unknown_tokens
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.parallel import processes
from sdtt_jax.paths import as_path, write_bytes

# Logits are written if there are at most this many numbers.
MOST_LOGITS = 1 << 28
# At most this many of the texts that are left out are named.
NAMED = 10


def check(subject: Subject) -> None:
    """Raises an error for a subject that the suite cannot measure."""
    judge, texts = subject.judge, subject.settings.texts
    if judge is None or not texts:
        raise ConfigError("--suite=judge needs a --judge and --texts.")
    next(read_texts(texts, judge.tokenizer, judge.config.vocab_size, readable=False), None)


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite: texts of a file of JSON lines under the judge.

    Texts with nothing to score (no token, or none but unk, BOS and EOS) are named, counted and left out.
    With `settings.arrays` it also writes -log p of every token and, if they are few, the logits.
    """
    settings, model = subject.settings, subject.judge
    assert model is not None
    num_ids = model.config.vocab_size
    texts = list(read_texts(settings.texts, model.tokenizer, num_ids, readable=False))
    require(
        len(texts) > 0,
        f"--texts={settings.texts} holds no texts; give a file of JSON lines with texts.",
    )
    ends = text_ends(model, settings)
    reading = in_judge_tokens(model, texts, model.tokenizer, ends)
    scorable = [_scorable(model, text, settings) for text in reading.seen]
    kept = [index for index, one in enumerate(scorable) if one]
    if left_out := [str(number) for number, one in enumerate(scorable, start=1) if not one]:
        named = ", ".join(left_out[:NAMED]) + (", …" if len(left_out) > NAMED else "")
        empty = f"{len(left_out)} of {len(texts)} texts hold nothing to score"
        require(len(kept) > 0, f"--texts={settings.texts}: {empty}; give others.")
        record.log(f"  {empty} and are left out: number {named}")
    kept_texts = [reading.texts[index] for index in kept]
    log_unknown(record, model.tokenizer, kept_texts, "texts")
    inputs = {
        "texts": digest_of(texts),
        "judge": model.identity | reading_of(model),
        "first_token": settings.first_token,
        "ends": ends,
        "seed": settings.seed,
    }

    def compute() -> Json:
        scores = score_texts(
            model,
            [reading.seen[index] for index in kept],
            batch_size=settings.batch_size,
            first_token=settings.first_token,
        )
        facts = {"file": settings.texts, "first_token": settings.first_token} | reading.facts
        facts |= {"texts_left_out": len(texts) - len(kept)}
        facts["unknown_tokens"] = unknown_tokens(model.tokenizer, kept_texts)
        return facts | quality(kept_texts, scores, seed=settings.seed)

    result = record.item("judge/texts", inputs, compute, {"file": settings.texts})
    judged = f"{result['num_texts']} text{'s' * (result['num_texts'] != 1)}"
    record.log(
        f"  {judged}: perplexity {with_interval(result, 'gen_ppl', 2)}, entropy {result['entropy']:.3f}"
    )
    if settings.arrays:
        _write_arrays(model, {index: reading.seen[index] for index in kept}, settings)


def _scorable(model: CausalModel, text: np.ndarray, settings: Settings) -> bool:
    """Whether a text has a token to score besides unk, BOS and EOS."""
    scored, tokenizer = text[settings.first_token == "given" :].tolist(), model.tokenizer
    if tokenizer is None:
        return len(scored) > 0
    return not {*scored} <= {tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id}


def _write_arrays(model: CausalModel, texts: Mapping[int, np.ndarray], settings: Settings) -> None:
    """Writes token scores of texts, which are keyed by their numbers in the file, from 0."""
    bos_id = bos_of(model, settings.first_token)
    rows, owners = make_rows([*texts.values()], bos_id=bos_id, limit=model.context)
    arrays = {
        "nll": token_nll(model, rows, settings.batch_size),
        "scored": rows.scored,
        "text": np.array([*texts])[owners],
    }
    if rows.inputs.size * model.config.vocab_size <= MOST_LOGITS:
        arrays["logits"] = processes.to_host(model.logits(jnp.asarray(rows.inputs)))
    if processes.is_first():
        write_bytes(as_path(settings.arrays), npz(arrays))
