"""The stage "evaluate": suites on every delivered model, gain, paired comparisons, and sample texts."""

import dataclasses
import functools
from typing import NamedTuple

from experiments.distillers import COUPLED_STUDENTS, ONE_ROUND, SDTT
from experiments.stages import few_calls
from experiments.stages.context import Run
from experiments.stages.training import delivered_rounds
from experiments.stages.workdir import final, is_delivered, read_json, write_json
from sdtt_jax.checkpoints.store import stored_digest
from sdtt_jax.diffusion.sampler import SamplerConfig
from sdtt_jax.distillation.rounds import round_dt
from sdtt_jax.errors import UserError
from sdtt_jax.evaluation.gain import FLOORED, GainConfig, measure_gain
from sdtt_jax.evaluation.quality import paired_log_ratio
from sdtt_jax.evaluation.record import FOLDER, Json, Record, digest_of, own_name, own_path
from sdtt_jax.evaluation.settings import Settings
from sdtt_jax.evaluation.subject import Subject
from sdtt_jax.evaluation.suites import generation, likelihood
from sdtt_jax.evaluation.texts import held_out
from sdtt_jax.keys import purpose_key, purpose_seed, unusual_generator
from sdtt_jax.model.causal import CausalModel
from sdtt_jax.model.masked import Model
from sdtt_jax.networks.kinds import kind_of
from sdtt_jax.parallel import processes

SHOWN_STEPS = (4, 8, 16)
ANIMATED_STEPS = 8
ESTIMATOR = "antithetic"
# Stages whose models this stage does not write a record of.
UNRECORDED = ("judge", *COUPLED_STUDENTS)


class MeasuredModel(NamedTuple):
    """The results of the suites for one model."""

    subject: Subject  # the model, its judge, perhaps its baseline
    record: Record  # where the items are
    texts: dict[str, generation.Judged]  # unconditional texts by the name of their item

    def figures(self, name: str) -> Json:
        """The figures of the texts of one item, for results.json."""
        item = self.record.items[f"generation/unconditional/{name}"]
        return {figure: item[figure] for figure in few_calls.FIGURES if figure in item}

    def perplexity(self, name: str) -> float:
        """Perplexity of held-out text."""
        return float(self.record.items[f"likelihood/{name}"]["perplexity"])


def evaluate(run: Run) -> None:
    """Writes results.json and samples.json; finished items and batches are kept in evaluations/."""
    rounds = delivered_rounds(run, SDTT)
    params = run.delivered(run.workdir.judge, run.judge, "evaluate")
    facts = {"path": str(final(run.workdir.judge)), "kind": kind_of(run.judge), "stage": "judge"}
    facts |= run.packing
    judge = CausalModel(params=params, tokenizer=run.tokenizer, facts=facts, network=run.judge)
    teacher = _measure(run, _model(run, 0), judge, baseline=judge)
    students, last = [], None
    for number in rounds:
        last = _measure(run, _model(run, number), judge, baseline=None)
        students.append(_round_record(run, number, last, teacher))
    real = teacher.texts["real_text"]
    results: Json = {
        "teacher": _denoiser_record(teacher),
        "rounds": students,
        "baseline_ar": teacher.figures("autoregressive")
        | {
            "val_ppl": teacher.perplexity("autoregressive"),
            "params_digest": judge.identity["digest"],
        },
        "data": teacher.figures("real_text") | {"count": len(real.tokens)},
        "num_texts": run.config.evaluation.num_texts,
        "length": run.config.data.length,
        "data_info": dataclasses.asdict(run.info),
        "delivered": _delivered(run),
    } | _texts_read(run)
    others = {name: _measure(run, _other(run, name), judge, baseline=None) for name in _others(run)}
    if others:
        # The same choice as the report's, `reporting.record.RecordedRun.student`.
        last = last or list(others.values())[-1]
        results["others"] = {
            name: {"paired": _paired(student, teacher), **_denoiser_record(student)}
            for name, student in others.items()
        }
    model, entropy = teacher.subject.model, results["data"]["entropy"]
    assert isinstance(model, Model)
    for name, numbers in _few_calls(run).items():
        for number in numbers:
            results[name] = few_calls.measure(run, name, number, model, judge, entropy)
    samples = _samples(run, teacher, last) | {"delivered": results["delivered"]}
    run.check_place()
    write_json(run.workdir.samples, samples)
    write_json(run.workdir.results, results)


def is_evaluated(run: Run) -> bool:
    """Whether results.json is about the models delivered now, each with its record.

    All processes get the same answer.

    Raises:
      UserError: results.json or samples.json is damaged.
    """
    # All processes must take the same branch: the checks below are collective.
    if not processes.agree(run.workdir.results.exists() and run.workdir.samples.exists()):
        return False
    rounds, few, others = delivered_rounds(run, SDTT), _few_calls(run), _others(run)
    results, samples = read_json(run.workdir.results), read_json(run.workdir.samples)
    delivered = _delivered(run)
    try:
        measured = (
            [record["round"] for record in results.get("rounds", ())],
            {name: [results[name]["round"]] if name in results else [] for name in few},
            set(results.get("others", ())),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{run.workdir.results} is damaged ({type(error).__name__}: {error}); remove it and run again."
        ) from None
    # Earlier versions did not store which models they had measured.
    same = all(file.get("delivered", delivered) == delivered for file in (results, samples))
    same = same and all(results.get(name) == value for name, value in _texts_read(run).items())
    if "delivered" in results:
        names = [own_name(place) for place in delivered if place.split("/")[0] not in UNRECORDED]
        same = same and all((run.workdir.root / FOLDER / f"{n}.json").exists() for n in names)
    return processes.agree(same and measured == (rounds, few, {*others}))


def _texts_read(run: Run) -> Json:
    """How results.json says what earlier versions did not do: end texts before padding, judge each alone."""
    if run.sequences is None:
        return {}
    return {"ends": "cut"} if run.sequences.has_padding else {"judged": "each text alone"}


def _delivered(run: Run) -> dict[str, str]:
    """The stored digests of all models that the results are about, by folder."""
    folders = [run.workdir.teacher, run.workdir.judge]
    for name in run.config.distillers:
        folders += [run.workdir.round(number, name) for number in delivered_rounds(run, name)]
    return {
        folder.relative_to(run.workdir.root).as_posix(): stored_digest(final(folder))
        for folder in folders
        if is_delivered(folder)
    }


def _few_calls(run: Run) -> dict[str, list[int]]:
    """The last finished round, if any, of each distiller that is measured at very few calls."""
    return {name: delivered_rounds(run, name)[-1:] for name in COUPLED_STUDENTS}


def _others(run: Run) -> list[str]:
    """The other finished distillers of one round."""
    names = [name for name in ONE_ROUND if name not in COUPLED_STUDENTS]
    return [name for name in names if delivered_rounds(run, name)]


def _other(run: Run, name: str) -> Model:
    return run.model(run.workdir.round(1, name), run.student(name), stage=name, round=1)


def _model(run: Run, number: int) -> Model:
    """The student of a round, or the first teacher as round 0."""
    if not number:
        return run.model(run.workdir.teacher, run.denoiser, stage="teacher")
    dt = round_dt(run.config.distill, number)
    return run.model(run.workdir.round(number), run.denoiser, stage="distill", round=number, dt=dt)


def _measure(
    run: Run, model: Model, judge: CausalModel, baseline: CausalModel | None
) -> MeasuredModel:
    config = run.config.evaluation
    settings = Settings(
        seed=run.config.seed,
        batch_size=config.batch_size,
        num_texts=config.num_texts,
        num_steps=tuple(sorted({*config.num_steps, *_shown_steps(run)})),
        time_grid=config.time_grid,
        held_out_texts=config.validation_sequences,
        estimators=(ESTIMATOR,),
        num_maskings=1,
    )
    # What the models have in common is measured once, with the teacher.
    once = baseline is not None
    subject = Subject(model, settings, judge, baseline, run.workdir.local.data, real_text=once)
    path = own_path(model)
    assert path is not None
    log = functools.partial(run.log_once, path.stem)
    record = Record(path, model.identity, log, replace=True)
    log(f"  {path.stem.replace('_', ' ')}:")
    generation.suite(subject, record)
    likelihood.suite(subject, record)
    [setup] = generation.setups(subject)
    texts = {
        writer.name: generation.judged_texts(subject, record, setup, writer)
        for writer in generation.writers(subject, setup)
    }
    return MeasuredModel(subject, record, texts)


def _shown_steps(run: Run) -> list[int]:
    return [n for n in SHOWN_STEPS if n <= run.config.data.length]


def _denoiser_record(measured: MeasuredModel) -> Json:
    steps = measured.subject.settings.num_steps
    # A student whose text is a function of its noise has no likelihood.
    bounded = f"likelihood/{ESTIMATOR}" in measured.record.items
    return {
        "steps": {str(n): measured.figures(f"steps_{n:04d}") for n in steps},
        "val_ppl": measured.perplexity(ESTIMATOR) if bounded else None,
        "params_digest": measured.subject.model.identity["digest"],
    }


def _paired(student: MeasuredModel, teacher: MeasuredModel) -> Json:
    """The log of a student's perplexity over the teacher's on texts of the same keys, by number of steps."""
    settings, paired = student.subject.settings, {}
    for num_steps in settings.num_steps:
        name = f"steps_{num_steps:04d}"
        ours, theirs = student.texts[name].scores, teacher.texts[name].scores
        assert ours is not None
        assert theirs is not None
        scored = ours.scored, theirs.scored
        ratio = paired_log_ratio(
            ours.per_token, theirs.per_token, seed=settings.seed, scored=scored
        )
        low, high = ratio.ends
        paired[str(num_steps)] = {"log_ratio": ratio.value, "low": low, "high": high}
    return paired


def _round_record(run: Run, number: int, student: MeasuredModel, teacher: MeasuredModel) -> Json:
    config = run.config.distill
    return {
        "round": number,
        "dt": round_dt(config, number),
        "num_distill_steps": config.num_distill_steps,
        "divergence": config.divergence,
        "paired": _paired(student, teacher),
        **_denoiser_record(student),
        **_gain(run, number, student),
    }


def _gain(run: Run, number: int, student: MeasuredModel) -> Json:
    config, settings = run.config.distill, run.config.evaluation
    if config.divergence not in FLOORED:
        return {"gain_share": None}
    model = student.subject.model
    assert isinstance(model, Model)
    teacher = _model(run, number - 1)
    texts = held_out(student.subject, settings.gain_sequences)
    dt, key = round_dt(config, number), purpose_key(run.config.seed, "evaluate.gain", number)
    inputs = {
        "student": model.identity["digest"],
        "teacher": teacher.identity["digest"],
        "texts": digest_of([texts]),
        "dt": dt,
        "trajectories": settings.gain_trajectories,
        "batch_size": settings.batch_size,
        "seed": run.config.seed,
    } | unusual_generator()

    def compute() -> Json:
        gains, size = GainConfig(config, settings.gain_trajectories), settings.batch_size
        gain = measure_gain(model, teacher, texts, dt, key, gains, batch_size=size)
        return {
            "gain_share": gain.share,
            "teacher_divergence": gain.teacher,
            "student_divergence": gain.student,
            "floor": gain.floor,
        }

    record = student.record.item("gain", inputs, compute)
    if record["gain_share"] is not None:
        student.record.log(
            f"  round {number}: divergence from the targets {record['teacher_divergence']:#.4g} (teacher) to "
            f"{record['student_divergence']:#.4g} (student), floor {record['floor']:#.4g}: gain share "
            f"{record['gain_share']:.2f}"
        )
    return record


def _samples(run: Run, teacher: MeasuredModel, student: MeasuredModel | None) -> Json:
    """Sample texts, and the states of one generation."""
    count, tokenizer, shown = run.config.evaluation.show_texts, run.tokenizer, _shown_steps(run)

    def decode(judged: generation.Judged) -> list[str]:
        return [tokenizer.decode(text) for text in judged.reading.texts[:count]]

    def by_steps(measured: MeasuredModel) -> Json:
        return {str(n): decode(measured.texts[f"steps_{n:04d}"]) for n in shown}

    texts: Json = {
        "teacher": by_steps(teacher),
        "data": decode(teacher.texts["real_text"]),
        "autoregressive": decode(teacher.texts["autoregressive"]),
    }
    if student is not None:
        texts["student"] = by_steps(student)
    return {
        "length": run.config.data.length,
        "steps": shown,
        "texts": texts,
        "animation": _animation(run, student or teacher),
        "seed": purpose_seed(run.config.seed, "evaluate.texts"),
    }


def _animation(run: Run, measured: MeasuredModel) -> Json:
    model = measured.subject.model
    assert isinstance(model, Model)
    config = SamplerConfig(num_steps=ANIMATED_STEPS, time_grid=run.config.evaluation.time_grid)
    key = purpose_key(run.config.seed, "evaluate.animation")
    frames = []
    for state in model.states(key, model.prior(1), config):
        [tokens] = processes.to_host(state.x)
        pieces = zip(tokens, run.tokenizer.pieces(tokens), strict=True)
        frames.append([None if token == model.mask_id else piece for token, piece in pieces])
    stage = model.facts["stage"]
    known = {"teacher": "teacher", "distill": f"student of round {model.facts.get('round')}"}
    who = known.get(stage, f"student of {stage}")
    return {"title": f"{who}, {ANIMATED_STEPS} steps", "frames": frames}
