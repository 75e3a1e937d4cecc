"""Noise-coupled students and the first teacher at very few calls, also at the entropy of real text."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.distillers import COUPLED
from experiments.stages.context import Run
from sdtt_jax.evaluation.bootstrap import bootstrap
from sdtt_jax.evaluation.quality import perplexity
from sdtt_jax.evaluation.record import FOLDER, Json, Record
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import generation
from sdtt_jax.evaluation.suites.frontier import at_entropy, column_means, text_columns
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.reporting.palette import counted

FIGURES = ("gen_ppl", "gen_ppl_low", "gen_ppl_high", "entropy", "nfe")
# The temperatures of ways of writing. The student takes the tokens that the noise determines, or draws them
# from its predictions, also at higher temperatures.
TEMPERATURES = {"argmax": 0.0, "drawn": 1.0, "warm": 1.3, "hot": 1.6, "hottest": 2.0}
TEACHER_TEMPERATURES = {
    "teacher_cold": 0.8,
    "teacher_cool": 0.9,
    "teacher": 1.0,
    "teacher_warm": 1.1,
    "teacher_hot": 1.2,
}
# These ways are always used; the others only as far as it takes to enclose the entropy of real text.
SHOWN = ("argmax", "drawn")
TEACHER_SHOWN = ("teacher",)
# The entropies at the two ends must lie beyond that of real text by so many standard errors of the mean.
MARGIN = 2.0
# The teacher is also measured at so many times the most calls, to show what the student's calls are worth.
TEACHER_CALLS = 2


def measure(
    run: Run, name: str, number: int, teacher: Model, judge: CausalModel, entropy: float
) -> Json:
    """The field `name`, "coupled" or "coupled_idlm", of results.json, about the student of its last round.

    `teacher` is the first one; `entropy` is that of real text, in nats.

    Returns:
      The student's round, digest and trajectories. For each number of calls, the figures of teacher and
      student for all ways of writing, and of both at the entropy of real text. In `teacher_calls`, the
      teacher's figures alone at `TEACHER_CALLS` times the most calls.
    """
    config = run.config.coupled
    student = run.model(run.workdir.round(number, name), run.coupled, stage=name, round=number)
    prefix = "" if name == COUPLED else f"{name}_"

    def by_teacher(n: int) -> dict[str, generation.Judged]:
        write = functools.partial(_texts, run, teacher, judge, n, "")
        return enclosed(write, TEACHER_TEMPERATURES, TEACHER_SHOWN, entropy)

    calls: Json = {}
    for n in config.calls:
        write = functools.partial(_texts, run, student, judge, n, prefix)
        judged = by_teacher(n) | enclosed(write, TEMPERATURES, SHOWN, entropy)
        both = matched(judged, entropy, run.config.seed)
        calls[str(n)] = {way: _figures(run, found) for way, found in judged.items()} | both
        ours, theirs = (
            f"{both[of]['gen_ppl']:.2f} (entropy {both[of]['entropy']:.3f})" for of in both
        )
        told = f"perplexity {ours} of the student of {name}, {theirs} of the teacher"
        run.log_once(name, f"  {counted(n, 'call')}: {told}")
    teacher_calls: Json = {}
    more = min(TEACHER_CALLS * max(config.calls), run.config.data.length)
    if more > max(config.calls):
        judged = by_teacher(more)
        found = _matched(entropy, *_columns(TEACHER_TEMPERATURES, judged))
        teacher_calls[str(more)] = {way: _figures(run, at) for way, at in judged.items()}
        teacher_calls[str(more)]["teacher_matched"] = found
        told = f"{found['gen_ppl']:.2f} (entropy {found['entropy']:.3f})"
        run.log_once(name, f"  {more} calls: perplexity {told} of the teacher")
    return {
        "round": number,
        "num_calls": config.num_calls,
        "num_trajectories": config.num_trajectories,
        "params_digest": student.identity["digest"],
        "calls": calls,
        "teacher_calls": teacher_calls,
    }


def enclosed(
    write: Callable[[str, float], generation.Judged],
    temperatures: Mapping[str, float],
    shown: Sequence[str],
    entropy: float,
) -> dict[str, generation.Judged]:
    """Texts at as many temperatures as it takes to have more and less entropy than real text.

    Args:
      write: returns the judged texts of a way of writing, given its temperature.
      temperatures: the temperature of each way; entropy is assumed to rise with it.
      shown: ways that are always used.
      entropy: the entropy of real text, in nats.

    Returns:
      Judged texts by way, coolest first. Their mean entropies enclose the one given by at least `MARGIN`
      standard errors on either side, unless the temperatures end before.
    """
    found = {way: write(way, temperatures[way]) for way in shown}
    ordered = sorted(temperatures, key=lambda way: temperatures[way])

    def beyond(side: int) -> bool:
        return any(_distance(judged, entropy) * side >= MARGIN for judged in found.values())

    known = [ordered.index(way) for way in shown]
    cooler, warmer = ordered[: min(known)][::-1], ordered[max(known) + 1 :]
    for side, further in ((-1, cooler), (1, warmer)):
        for way in further:
            if not beyond(side):
                found[way] = write(way, temperatures[way])
    return {way: found[way] for way in ordered if way in found}


def _distance(judged: generation.Judged, entropy: float) -> float:
    """How far the mean entropy of texts lies above `entropy`, in standard errors of that mean."""
    *_, found = text_columns(judged)
    above = float(found.mean()) - entropy
    error = float(found.std(ddof=1)) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return above / error if error else float(np.copysign(np.inf, above)) if above else 0.0


def matched(judged: dict[str, generation.Judged], entropy: float, seed: int) -> Json:
    """Student and teacher at the entropy of real text, each interpolated between its ways of writing.

    The log of perplexity is interpolated linearly in the entropy, and is constant beyond the two ends.

    `judged` has texts of at least two of `TEMPERATURES` and of `TEACHER_TEMPERATURES`; `seed` is that of the
    bootstrap over texts.

    Returns:
      `{"matched": …, "teacher_matched": …}`: perplexity, entropy and temperature of each; for the student
      also the log of its perplexity over the teacher's, with a 95 % interval. Every way of writing has
      keys of its own, so the two are independent.
    """
    own_temperatures, own_columns = _columns(TEMPERATURES, judged)
    temperatures, columns = _columns(TEACHER_TEMPERATURES, judged)
    split = len(own_columns)

    def log_ratio(*both: np.ndarray) -> np.ndarray:
        student = _at(entropy, own_temperatures, both[:split])[0]
        return student - _at(entropy, temperatures, both[split:])[0]

    ratio = bootstrap(log_ratio, *own_columns, *columns, seed=seed)
    low, high = ratio.ends
    student = _matched(entropy, own_temperatures, own_columns)
    student |= {"log_ratio": ratio.value, "low": low, "high": high}
    return {"matched": student, "teacher_matched": _matched(entropy, temperatures, columns)}


def _matched(entropy: float, temperatures: Sequence[float], columns: Sequence[np.ndarray]) -> Json:
    """Perplexity, entropy and temperature at the point that `_at` finds."""
    nats, at, temperature = (float(value) for value in _at(entropy, temperatures, columns))
    return {"gen_ppl": float(np.exp(nats)), "entropy": at, "temperature": temperature}


def _columns(
    known: Mapping[str, float], judged: Mapping[str, generation.Judged]
) -> tuple[list[float], list[np.ndarray]]:
    """The temperatures of the judged ways of writing, and the columns of their texts for `_at`."""
    ways = [way for way in known if way in judged]
    return [known[way] for way in ways], [x for way in ways for x in text_columns(judged[way])]


def _at(
    entropy: float, temperatures: Sequence[float], columns: Sequence[np.ndarray]
) -> tuple[np.ndarray, ...]:
    """Nats per token, entropy and temperature where the entropy is as given, or at the nearer end.

    `columns` are the `text_columns` of each way of writing in turn.
    """
    nats, entropies = column_means(columns)
    at = np.clip(entropy, entropies.min(axis=-1), entropies.max(axis=-1))
    shares = np.broadcast_to(temperatures, nats.shape)
    return at_entropy(nats, entropies, at), at, at_entropy(shares, entropies, at)


def _texts(
    run: Run,
    model: Model,
    judge: CausalModel,
    calls: int,
    prefix: str,
    way: str,
    temperature: float,
) -> generation.Judged:
    """Judged texts; tokens are spread evenly over the calls."""
    config = run.config.evaluation
    settings = Settings(
        seed=run.config.seed,
        batch_size=config.batch_size,
        num_texts=config.num_texts,
        num_steps=(calls,),
        mode="first-hitting",
        temperature=temperature,
    )
    subject = Subject(model, settings, judge, None, run.workdir.local.data)
    name = f"{prefix}{way}"
    path = run.workdir.root / FOLDER / f"few_calls_{name}.json"
    log = functools.partial(run.log_once, name)
    record = Record(path, model.identity, log, replace=True)
    setup = generation.unprompted(subject, name, None)
    [writer] = generation.writers(subject, setup)
    return generation.judged_texts(subject, record, setup, writer)


def _figures(run: Run, judged: generation.Judged) -> Json:
    assert judged.scores is not None
    found: Json = perplexity(judged.scores, seed=run.config.seed).named("gen_ppl")
    *_, entropy = text_columns(judged)
    return found | {"entropy": float(entropy.mean()), "nfe": float(judged.nfe.mean())}
