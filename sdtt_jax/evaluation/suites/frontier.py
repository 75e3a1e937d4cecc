"""The suite "frontier": perplexity at the entropy of real text, for each decoder and number of calls.

Lower entropy buys lower perplexity, so figures at one temperature compare models at different points of a
trade-off. Here each setting writes texts at several temperatures, and the logarithm of its perplexity is
interpolated between them at the entropy of real text.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from sdtt_jax.checkpoints.digests import canonical_sha256
from sdtt_jax.config import require
from sdtt_jax.errors import ConfigError
from sdtt_jax.evaluation.bootstrap import bootstrap, exp_ratio, mean, with_interval
from sdtt_jax.evaluation.judge import in_judge_tokens
from sdtt_jax.evaluation.quality import unigram_entropy
from sdtt_jax.evaluation.record import Json, Record, digest_of, placeless
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import generation
from sdtt_jax.evaluation.texts import held_out, require_held_out
from sdtt_jax.evaluation.unknown import log_unknown
from sdtt_jax.ops.sequences import unpadded

# A perplexity up to this factor above the checkpoint's best still counts as clean.
CLEAN = 1.05
# What the names of items begin with: measured ones, and those that sum these up.
MATCHED, SUMMARY = "frontier/matched/", "frontier/clean/"


def check(subject: Subject) -> None:
    """Raises an error for a subject that the suite cannot measure."""
    settings = subject.settings
    subject.denoiser("frontier")
    if subject.judge is None:
        raise ConfigError("--suite=frontier needs a --judge.")
    require_held_out(subject)  # at whose entropy texts are compared
    require(
        len(settings.temperatures) > 1,
        "--suite=frontier interpolates between --temperatures; give at least two.",
    )
    subject.check_samplers(settings.num_steps, settings.modes.split())


def suite(subject: Subject, record: Record) -> None:
    """Runs the suite; texts and items that the record has are not computed again."""
    settings = subject.settings
    real = held_out(subject, settings.num_texts)
    log_unknown(record, subject.model.tokenizer, real, "real text")
    target = real_entropy(subject, real)
    record.log(f"  real text has an entropy of {target:.3f}")
    for mode in dict.fromkeys(settings.modes.split()) or (settings.mode,):
        for num_steps in settings.num_steps:
            latest = _item(subject, record, mode, num_steps, real, target)
    _clean_calls(record, latest)


def real_entropy(subject: Subject, real: np.ndarray) -> float:
    """Mean entropy of real sequences `[texts, length]`: without prompts and padding, and cut as asked for."""
    rows, given = unpadded(real, subject.model.sequences)
    reading = in_judge_tokens(None, rows, subject.model.tokenizer, subject.ends, given)
    return float(unigram_entropy(reading.written).mean())


def at_entropy(nats: np.ndarray, entropies: np.ndarray, target: float | np.ndarray) -> np.ndarray:
    """Nats per token at a given entropy, by linear interpolation, and extrapolation at the ends: `[...]`.

    Args:
      nats, entropies: `[..., points]`, at least two.
      target: the entropy, one or `[...]`.
    """
    order = np.argsort(entropies, axis=-1, kind="stable")
    x, y = (np.take_along_axis(values, order, axis=-1) for values in (entropies, nats))
    below = (x < np.asarray(target)[..., None]).sum(axis=-1, keepdims=True)
    right = np.clip(below, 1, x.shape[-1] - 1)
    (x0, x1), (y0, y1) = (
        [np.take_along_axis(values, at, axis=-1)[..., 0] for at in (right - 1, right)]
        for values in (x, y)
    )
    width = x1 - x0
    share = np.where(width > 1e-9, (target - x0) / np.where(width > 1e-9, width, 1.0), 0.5)
    return np.asarray(y0 + share * (y1 - y0))


def _item(
    subject: Subject, record: Record, mode: str, num_steps: int, real: np.ndarray, target: float
) -> str:
    """Measures a decoder at a number of steps; returns the name of its item."""
    settings = subject.settings
    setup, at_steps = generation.unprompted(subject, "frontier", None), f"{mode}, {num_steps} steps"
    at = functools.partial(dataclasses.replace, settings, mode=mode, num_steps=(num_steps,))
    subjects = [
        dataclasses.replace(subject, baseline=None, settings=at(temperature=temperature))
        for temperature in settings.temperatures
    ]
    writers = [generation.writers(each, setup)[0] for each in subjects]
    inputs: Json = {
        "texts": [writer.inputs for writer in writers],
        "judging": generation.judging(subject),
        "real": digest_of([real]),
    }

    def compute() -> Json:
        # Titles lose their middle on a narrow terminal; of a mode a part is enough.
        judged = [
            generation.judged_texts(
                each, record, setup, writer, title=f"{num_steps} steps, {mode}, temperature {t:g}"
            )
            for each, writer, t in zip(subjects, writers, settings.temperatures, strict=True)
        ]
        points = [
            {"temperature": temperature} | _point(texts, settings.seed)
            for temperature, texts in zip(settings.temperatures, judged, strict=True)
        ]
        result = {"kind": "diffusion", "mode": mode, "num_steps": num_steps, "points": points}
        return result | {"entropy": target} | _matched(judged, settings, target)

    name = f"{MATCHED}{mode}/steps_{num_steps:04d}"
    result = record.item(name, inputs, compute)
    reached = result["gen_ppl"] is not None
    value = with_interval(result, "gen_ppl", 2) if reached else "not reached at these temperatures"
    record.log(f"  {at_steps}: perplexity at that entropy {value}")
    return name


def _point(judged: generation.Judged, seed: int) -> Json:
    nll, scored, entropy = text_columns(judged)
    found = bootstrap(exp_ratio, nll, scored, seed=seed).named("gen_ppl")
    return found | bootstrap(mean, entropy, seed=seed).named("entropy")


def _matched(judged: list[generation.Judged], settings: Settings, target: float) -> Json:
    """Perplexity, temperature and network calls at the entropy of real text, which is treated as exact.

    Text i of all temperatures is drawn with one key, so they are resampled together. The calls of an entropy
    that is not reached are the mean over all temperatures.
    """
    columns = list(itertools.chain(*map(text_columns, judged)))

    def perplexity(*columns: np.ndarray) -> np.ndarray:
        return np.exp(at_entropy(*column_means(columns), target))

    _, entropies = column_means(columns)
    calls = np.array([texts.nfe.mean() for texts in judged])
    if not entropies.min() <= target <= entropies.max():
        nothing = dict.fromkeys(("gen_ppl", "gen_ppl_low", "gen_ppl_high", "temperature"))
        return nothing | {"nfe": float(calls.mean())}
    temperature = at_entropy(np.array(settings.temperatures), entropies, target)
    found = bootstrap(perplexity, *columns, seed=settings.seed).named("gen_ppl")
    # Exact where all temperatures take the same calls.
    nfe = calls[0] + at_entropy(calls - calls[0], entropies, target)
    return found | {"temperature": float(temperature), "nfe": float(nfe)}


def text_columns(judged: generation.Judged) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each text its nats, the number of scored tokens, and its entropy."""
    scores = judged.scores
    assert scores is not None
    return scores.nll, scores.scored, unigram_entropy(judged.reading.written)


def column_means(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Nats per token and mean entropy of several sets of texts: `[..., sets]` each.

    `columns` are the `text_columns` of one set after the other, each `[..., texts]`.
    """
    nll, scored, entropy = (np.stack(columns[i::3], axis=-2) for i in range(3))
    return np.log(exp_ratio(nll, scored)), mean(entropy)


def _clean_calls(record: Record, latest: str) -> None:
    """Records for each decoder the fewest steps whose perplexity is within `CLEAN` of the best.

    All measured items of the record count, also those of earlier calls, but they are compared only with
    others of the same judging and real text. A decoder measured in several ways goes by that of the item
    `latest`, of which the log speaks. What is not known is removed.
    """
    groups: dict[str, list[str]] = {}
    for name in record.items:
        if name.startswith(MATCHED):
            groups.setdefault(_measured_by(record, name), []).append(name)
    current = groups.pop(_measured_by(record, latest))
    *others, summaries = (_summaries(record, names) for names in (*groups.values(), current))
    found = dict(itertools.chain(*(each.items() for each in (*others, summaries))))
    for name in record.items:
        if name.startswith(SUMMARY) and found.get(name.removeprefix(SUMMARY)) is None:
            record.remove(name)
    for mode, known in found.items():
        if known is not None:
            result = {name: value for name, value in known.items() if name != "judging"}
            record.item(f"{SUMMARY}{mode}", known, functools.partial(dict, result))
    unknown = [name for name in current if record.items[name]["gen_ppl"] is None]
    if unknown:
        settings = ", ".join(name.removeprefix(MATCHED) for name in unknown)
        record.log(
            f"  lowest clean number of calls: not known, for {settings} could be the best; give lower and "
            "higher --temperatures for it"
        )
    for mode, known in summaries.items():
        if known is not None:
            calls = "none" if known["clean_calls"] is None else f"{known['clean_calls']:.1f}"
            tried = ", the most that was tried" if known.get("most_tried") else ""
            record.log(f"  {mode}: lowest clean number of calls: {calls}{tried}")


def _measured_by(record: Record, name: str) -> str:
    """By whom a measured item was judged, and the real text at whose entropy it stands."""
    inputs = record.inputs[name]
    judging = placeless(inputs["judging"])
    return canonical_sha256([judging, inputs.get("real"), record.items[name]["entropy"]])


def _summaries(record: Record, names: list[str]) -> dict[str, Json | None]:
    """The lowest clean number of calls of each decoder among comparable items, with their `judging`.

    None if a perplexity at that entropy is not known, for it could be the best. With `most_tried`, only the
    most steps that were tried come so close, and more might have been better still.
    """
    items = [record.items[name] for name in names]
    modes = dict.fromkeys(item["mode"] for item in items)
    if any(item["gen_ppl"] is None for item in items):
        return dict.fromkeys(modes)
    best = min(item["gen_ppl"] for item in items)
    most = max(item["num_steps"] for item in items)
    found: dict[str, Json | None] = {}
    for mode in modes:
        clean = [i for i in items if i["mode"] == mode and i["gen_ppl"] <= CLEAN * best]
        first = min(clean, key=lambda item: item["num_steps"], default=None)
        result = {"kind": "diffusion", "mode": mode, "best": best, "clean_calls": None}
        if first is not None:
            fields = ("entropy", "gen_ppl", "gen_ppl_low", "gen_ppl_high")
            result |= {"clean_calls": first["nfe"]} | {name: first[name] for name in fields}
            result |= {"most_tried": first["num_steps"] == most}
        found[mode] = result | {"judging": record.inputs[names[0]]["judging"]}
    return found
