"""Noise-coupled students and the first teacher at very few calls, also at the entropy of real text."""

import numpy as np

from experiments.distillers import COUPLED
from experiments.stages.context import Run
from sdtt_jax.evaluation.bootstrap import bootstrap
from sdtt_jax.evaluation.quality import quality, unigram_entropy
from sdtt_jax.evaluation.record import FOLDER, Json, Record
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import generation
from sdtt_jax.evaluation.suites.frontier import at_entropy
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model

FIGURES = ("gen_ppl", "gen_ppl_low", "gen_ppl_high", "entropy", "nfe")
# Tokens that the noise determines, and tokens drawn from what the student says of them, also more evenly.
TEMPERATURES = {"argmax": 0.0, "drawn": 1.0, "warm": 1.3}


def measure(
    run: Run, name: str, number: int, teacher: Model, judge: CausalModel, entropy: float
) -> Json:
    """The field `name` of results.json.

    Args:
      run: whose noise-coupled student is measured.
      name: of its distiller, "coupled" or "coupled_idlm".
      number: of the round that it has finished.
      teacher: the first one.
      judge: of the texts.
      entropy: of real text, nats.

    Returns:
      The student's round, digest and trajectories, and for each number of calls the figures of the teacher,
      of the student's ways of writing, and of these interpolated at the entropy of real text, with the log of
      its perplexity over the teacher's and a 95 % interval.
    """
    config = run.config.coupled
    student = run.model(run.workdir.round(number, name), run.coupled, stage=name, round=number)
    texts = {"teacher": _texts(run, teacher, judge, "teacher", 1.0)}
    for way, temperature in TEMPERATURES.items():
        title = way if name == COUPLED else f"{name}_{way}"
        texts[way] = _texts(run, student, judge, title, temperature)
    calls: Json = {}
    for n in config.calls:
        judged = {way: found[n] for way, found in texts.items()}
        calls[str(n)] = {way: _figures(run, found) for way, found in judged.items()}
        calls[str(n)]["matched"] = matched(judged, entropy, run.config.seed)
        found = calls[str(n)]
        run.log(
            f"  {n} calls: teacher {found['teacher']['gen_ppl']:.2f}, student of {name} "
            f"{found['matched']['gen_ppl']:.2f} at the entropy {found['matched']['entropy']:.3f}"
        )
    return {
        "round": number,
        "num_calls": config.num_calls,
        "num_trajectories": config.num_trajectories,
        "params_digest": student.identity["digest"],
        "calls": calls,
    }


def matched(judged: dict[str, generation.Judged], entropy: float, seed: int) -> Json:
    """The student at the entropy of real text, between its ways of writing.

    The log of its perplexity is interpolated linearly in the entropy, and is constant beyond the two ends.

    Args:
      judged: texts of "teacher", and of at least two of `TEMPERATURES`.
      entropy: to be matched, nats.
      seed: of the bootstrap over texts.
    """
    ways = [way for way in TEMPERATURES if way in judged]
    columns = []
    for way in (*ways, "teacher"):
        scores = judged[way].scores
        assert scores is not None
        columns += [scores.per_token, unigram_entropy(judged[way].tokens)]

    def interpolated(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
        means = [column.mean(axis=-1) for column in columns[: 2 * len(ways)]]
        nats, entropies = np.stack(means[::2], axis=-1), np.stack(means[1::2], axis=-1)
        temperatures = np.broadcast_to([TEMPERATURES[way] for way in ways], nats.shape)
        at = np.clip(entropy, entropies.min(axis=-1), entropies.max(axis=-1))
        return at_entropy(nats, entropies, at), at, at_entropy(temperatures, entropies, at)

    def log_ratio(*columns: np.ndarray) -> np.ndarray:
        return interpolated(*columns)[0] - columns[-2].mean(axis=-1)

    nats, at, temperature = (float(value) for value in interpolated(*columns))
    ratio = bootstrap(log_ratio, *columns, seed=seed)
    low, high = ratio.ends
    return {
        "gen_ppl": float(np.exp(nats)),
        "entropy": at,
        "temperature": temperature,
        "log_ratio": ratio.value,
        "low": low,
        "high": high,
    }


def _texts(
    run: Run, model: Model, judge: CausalModel, name: str, temperature: float
) -> dict[int, generation.Judged]:
    """Judged texts by number of calls; tokens are spread evenly over the calls."""
    config = run.config.evaluation
    settings = Settings(
        seed=run.config.seed,
        batch_size=config.batch_size,
        num_texts=config.num_texts,
        num_steps=run.config.coupled.calls,
        mode="first-hitting",
        temperature=temperature,
    )
    subject = Subject(model, settings, judge, None, run.workdir.local.data)
    path = run.workdir.root / FOLDER / f"few_calls_{name}.json"
    record = Record(path, model.identity, run.log, replace=True)
    nothing = np.zeros((config.num_texts, 0), np.int32)
    setup = generation.Setup(name, nothing, subject.length, None)
    return {
        writer.facts["num_steps"]: generation.judged_texts(subject, record, setup, writer)
        for writer in generation.writers(subject, setup)
    }


def _figures(run: Run, judged: generation.Judged) -> Json:
    found = quality(judged.reading.texts, judged.scores, seed=run.config.seed)
    found["nfe"] = float(judged.nfe.mean())
    return {figure: found[figure] for figure in FIGURES}
