"""Reads the results in a run's directory into small frozen dataclasses.

Everything except `config.json` may be missing: a run that has only trained its teacher has no results yet,
and a report of it must still be possible. What is there must be well formed.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sdtt_jax.errors import DataError
from sdtt_jax.formats import parse_json, read_json, text_lines
from sdtt_jax.paths import as_path
from sdtt_jax.reporting.evaluations import AGAIN, COUPLED_STUDENTS, Evaluation, read_evaluations
from sdtt_jax.reporting.palette import percent

COUPLED_WAYS = ("teacher", "argmax", "drawn", "matched", "teacher_matched")
ROUND_NUMBERS = ("dt", "teacher_divergence", "student_divergence", "floor", "gain_share")
# Relative distance within which entropies count as equal. It is far smaller than the one that the page allows
# as variety: 1 % of entropy may be worth a tenth of perplexity.
ENTROPY_MATCHED = 0.001


@dataclasses.dataclass(frozen=True)
class Quality:
    """Quality of sampled texts: generative perplexity with its 95 % interval, entropy in nats.

    `nfe` is the mean number of network calls. A value that was not measured is None.
    """

    gen_ppl: float
    low: float | None = None
    high: float | None = None
    entropy: float | None = None
    nfe: float | None = None


@dataclasses.dataclass(frozen=True)
class Paired:
    """Log of the student's perplexity over the first teacher's on the same keys, with its 95 % interval."""

    log_ratio: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """Whether the interval excludes "no change"."""
        return not self.low <= 0 <= self.high

    @property
    def change(self) -> tuple[str, str]:
        """The change of perplexity and its interval, as text."""
        low, high = (_end(math.expm1(end)) for end in (self.low, self.high))
        return percent(math.expm1(self.log_ratio), sign=True), f"{low} to {high}"


def _end(change: float) -> str:
    """An end of an interval of changes, as text that says on which side of 0 it lies."""
    text = percent(change, sign=True)
    if text != percent(0.0) or abs(change) < 1e-9:  # below that it is rounding
        return text
    return f"just {'above' if change > 0 else 'below'} 0\u202f%"


@dataclasses.dataclass(frozen=True)
class Round:
    """A student: its setting, the quality of its texts, and what it learned.

    `name` is, say, "round 2", or the name of another distiller, which has only one round.
    """

    name: str
    number: int
    steps: dict[int, Quality]
    paired: dict[int, Paired]
    dt: float | None = None
    num_distill_steps: int | None = None
    divergence: str | None = None
    teacher_divergence: float | None = None
    student_divergence: float | None = None
    floor: float | None = None
    gain_share: float | None = None

    @property
    def nothing_to_gain(self) -> bool:
        """Whether the teacher already lies at its floor, within the precision of the measurement.

        `gain_share` divides by the distance between the two, so it then means nothing.
        """
        known = self.teacher_divergence is not None and self.floor is not None
        return known and self.teacher_divergence <= self.floor  # type: ignore[operator]


@dataclasses.dataclass(frozen=True)
class FewCalls:
    """The first teacher and the noise-coupled student at a number of network calls.

    The student takes the tokens that its noise determines (`argmax`), draws them from its own distribution
    (`drawn`), or is tuned to the entropy of real text (`matched`), as is the teacher in `teacher_matched`.
    `paired` compares these two, whose texts have keys of their own. Where no temperature that was tried gives
    that entropy, the figures are those of the nearest one. `reached` is False if the comparison then means
    nothing. A student with more entropy (`surplus`) is compared: the more entropy, the higher a perplexity.
    """

    calls: int
    teacher: Quality
    argmax: Quality
    drawn: Quality
    matched: Quality
    teacher_matched: Quality
    paired: Paired
    reached: bool = True

    @property
    def change(self) -> str:
        """The change of perplexity from the teacher to the matched student with its interval, as text."""
        change, interval = self.paired.change
        return f"{change} (95\u202f% {interval})"

    @property
    def surplus(self) -> float:
        """By what share the student has more entropy than the teacher; 0 where they count as equal."""
        student, teacher = self.matched.entropy or 0.0, self.teacher_matched.entropy or math.inf
        return more if (more := student / teacher - 1) > ENTROPY_MATCHED else 0.0


class LossCurve(NamedTuple):
    """Loss by step of one stage; `round` is 0 for stages that have no rounds."""

    stage: str
    round: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    tokens_per_second: float | None


class Animation(NamedTuple):
    """One text being denoised: its final pieces, and the step at which each was revealed."""

    title: str
    pieces: tuple[str, ...]
    revealed: tuple[int, ...]
    num_steps: int


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """All that the report shows of one working directory."""

    name: str
    config: Mapping[str, Any]
    curves: tuple[LossCurve, ...]
    teacher: dict[int, Quality]
    teacher_val_ppl: float | None
    rounds: tuple[Round, ...]
    autoregressive: Quality | None
    data: Quality | None
    data_entropy: float | None
    num_texts: int | None
    timing: dict[str, float]
    length: int | None
    sample_steps: tuple[int, ...]
    texts: Mapping[str, Any]
    animation: Animation | None
    data_info: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...] = ()
    few_calls: tuple[FewCalls, ...] = ()  # of the last noise-coupled student
    first_few_calls: tuple[FewCalls, ...] = ()  # of the student that it started from, if any
    # The first teacher at the entropy of real text, by network calls: those of `few_calls`, and higher ones,
    # without those at which it does not reach that entropy.
    teacher_few_calls: Mapping[int, Quality] = dataclasses.field(default_factory=dict)
    others: tuple[Round, ...] = ()  # students of other distillers

    @property
    def students(self) -> tuple[Round, ...]:
        """All students: the rounds, and those of other distillers."""
        return self.rounds + self.others

    @property
    def student(self) -> Round | None:
        """The student that the page speaks of: the last round's, or else the last of the others."""
        return (self.rounds or self.others or (None,))[-1]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The fields of the config, of which files of older runs consist."""
        inner = self.config.get("config")
        return inner if isinstance(inner, Mapping) else self.config

    @property
    def judge_checkpoint(self) -> str:
        """The judge that the run was given; empty if it trained its own."""
        judge = self.settings.get("judge")
        return str(judge.get("checkpoint") or "") if isinstance(judge, Mapping) else ""


def read_run(workdir: Path | str) -> RecordedRun:
    """Reads a working directory.

    Raises DataError if there is no `config.json` or if a file is not what its schema says.
    """
    workdir = as_path(workdir)
    config = _stored(workdir / "config.json")
    if config is None:
        raise DataError(
            f"There is no config.json in {workdir}: it is not the directory of a run. "
            "Give the directory that experiments.run was called with."
        )
    results = _stored(workdir / "results.json") or {}
    samples = _stored(workdir / "samples.json") or {}
    where = workdir / "results.json"
    try:
        teacher = results.get("teacher") or {}
        data = results.get("data") or {}
        entropy = _number(data.get("entropy"))
        measured = [results[name] for name in COUPLED_STUDENTS if results.get(name)]
        coupled = [*filter(None, (_few_calls(m.get("calls"), entropy) for m in measured)), (), ()]
        alone = (measured[0].get("teacher_calls") or {}) if measured else {}
        alone_matched = _qualities({n: ways.get("teacher_matched") for n, ways in alone.items()})
        matched = {few.calls: few.teacher_matched for few in coupled[0]} | alone_matched
        return RecordedRun(
            name=workdir.resolve().name,
            config=config,
            curves=tuple(c for c in read_curves(workdir / "metrics.jsonl") if _is_asked(c, config)),
            teacher=_qualities(teacher.get("steps")),
            teacher_val_ppl=_number(teacher.get("val_ppl")),
            rounds=tuple(
                sorted((_round(r) for r in results.get("rounds") or ()), key=lambda r: r.number)
            ),
            autoregressive=_quality(results.get("baseline_ar")),
            data=_quality(data),
            data_entropy=entropy,
            num_texts=results.get("num_texts"),
            timing={k: float(v) for k, v in (results.get("timing") or {}).items() if _number(v)},
            length=samples.get("length") or results.get("length"),
            sample_steps=tuple(samples.get("steps") or ()),
            texts=samples.get("texts") or {},
            animation=read_animation(samples.get("animation"), workdir / "samples.json"),
            data_info=results.get("data_info") or {},
            evaluations=tuple(read_evaluations(workdir)),
            few_calls=coupled[0],
            first_few_calls=coupled[1],
            teacher_few_calls={n: q for n, q in matched.items() if _has_entropy(q, entropy)},
            others=tuple(_round(r, name) for name, r in (results.get("others") or {}).items()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where} is not of the expected form ({type(error).__name__}: {error}). "
            "Run the evaluate stage again, or delete the file."
        ) from error


def _is_asked(curve: LossCurve, config: Mapping[str, Any]) -> bool:
    """Whether a run with this `config.json` trains what the curve shows.

    It may have trained something else before: a teacher that was then taken from elsewhere, or a distiller
    or a round that was taken away.
    """
    fields = config.get("config", config)
    if curve.stage in ("teacher", "judge"):
        return not (fields.get(curve.stage) or {}).get("checkpoint")
    if curve.round > (fields.get(curve.stage) or {}).get("num_rounds", curve.round):
        return False
    name = "sdtt" if curve.stage == "distill" else curve.stage
    return curve.stage == "skeleton" or name in fields.get("distillers", [name])


def read_curves(path: Path) -> tuple[LossCurve, ...]:
    """Reads `metrics.jsonl` into one loss curve per stage and round, in order of appearance.

    A resumed run logs some steps twice; the later line is the one that led to the final parameters. A last
    line cut short by a kill is passed over, any other bad line is an error.
    """
    if not path.exists():
        return ()
    lines = list(text_lines(path))
    losses: dict[tuple[str, int], dict[int, float]] = {}
    speeds: dict[tuple[str, int], list[float]] = {}
    for index, (where, line) in enumerate(lines):
        try:
            entry = parse_json(line, where)
            curve = (str(entry["stage"]), int(entry.get("round", 0)))
            step, loss = int(entry["step"]), _number(entry.get("loss"))
        except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
            if 0 < index == len(lines) - 1:
                continue
            raise DataError(
                f"Line {where.rpartition(' ')[2]} of {path} is not a logged step "
                f"({str(error).rstrip('.')}). Delete that line and write the report again."
            ) from error
        if loss is not None:
            losses.setdefault(curve, {})[step] = loss
        speed = _number(entry.get("tokens_per_second"))
        if speed is not None:
            speeds.setdefault(curve, []).append(speed)
    curves = []
    for curve, by_step in losses.items():
        steps, values = zip(*sorted(by_step.items()), strict=True)
        speed = statistics.median_high(speeds[curve]) if curve in speeds else None
        curves.append(LossCurve(*curve, steps, values, speed))
    return tuple(curves)


def read_animation(entry: Mapping[str, Any] | None, where: Path) -> Animation | None:
    """Turns frames (lists of pieces, None where masked) into final pieces and reveal steps.

    Masked diffusion never takes a token back, so one reveal step per position is enough. A position still
    masked in the last frame has reveal step `num_steps + 1`. Pieces are text as `Tokenizer.pieces` gives it;
    BOS and EOS have none there, and show as a pilcrow, since they part one text from the next.
    """
    frames = entry.get("frames") if entry else None
    if not entry or not frames:
        return None
    if len({len(frame) for frame in frames}) != 1:
        raise DataError(f"{where}: the frames of the animation differ in length.")
    while len(frames) > 2 and frames[-1] == frames[-2]:
        # The final greedy denoising often finds nothing left to reveal.
        frames = frames[:-1]
    return Animation(
        title=str(entry.get("title", "")),
        pieces=tuple(" " if piece is None else piece or "¶" for piece in frames[-1]),
        revealed=tuple(
            max((step for step, piece in enumerate(pieces, start=1) if piece is None), default=0)
            for pieces in zip(*frames, strict=True)
        ),
        num_steps=len(frames) - 1,
    )


def _stored(path: Path) -> Any:
    if not path.exists():
        return None
    return read_json(path, remedy=AGAIN)


def _number(value: Any) -> float | None:
    """A finite number, or None: JSON written by Python may hold NaN where nothing was measured."""
    if value is None or isinstance(value, bool) or not math.isfinite(float(value)):
        return None
    return float(value)


def _quality(entry: Mapping[str, Any] | None) -> Quality | None:
    gen_ppl = _number(entry.get("gen_ppl")) if entry else None
    if not entry or gen_ppl is None or gen_ppl <= 0:
        return None
    names = ("gen_ppl_low", "gen_ppl_high", "entropy", "nfe")
    return Quality(gen_ppl, *(_number(entry.get(name)) for name in names))


def _qualities(steps: Mapping[str, Any] | None) -> dict[int, Quality]:
    found = {int(k): _quality(v) for k, v in (steps or {}).items()}
    return {k: q for k, q in sorted(found.items()) if q is not None}


def _few_calls(calls: Mapping[str, Any] | None, entropy: float | None) -> tuple[FewCalls, ...]:
    """Teacher and student by calls; `entropy` is that of real text."""
    found = []
    for number, entry in sorted((calls or {}).items(), key=lambda item: int(item[0])):
        # Older runs measured the teacher only as it is, not matched.
        entry = {"teacher_matched": entry.get("teacher")} | entry
        qualities = {name: _quality(entry.get(name)) for name in COUPLED_WAYS}
        paired = _paired(entry["matched"])
        if None not in qualities.values() and paired is not None:
            few = FewCalls(int(number), paired=paired, **qualities)  # type: ignore[arg-type]
            compared = [few.teacher_matched] + ([] if few.surplus else [few.matched])
            reached = all(_has_entropy(quality, entropy) for quality in compared)
            found.append(dataclasses.replace(few, reached=reached))
    return tuple(found)


def _has_entropy(quality: Quality, entropy: float | None) -> bool:
    """Whether texts have the entropy of real text; what was not measured does not speak against it."""
    found = quality.entropy
    return found is None or not entropy or abs(found / entropy - 1) <= ENTROPY_MATCHED


def _paired(entry: Mapping[str, Any]) -> Paired | None:
    values = [_number(entry.get(name)) for name in ("log_ratio", "low", "high")]
    return None if None in values else Paired(*values)  # type: ignore[arg-type]


def _round(entry: Mapping[str, Any], name: str = "") -> Round:
    """A round or, if `name` is given, the only round of another distiller."""
    paired = {int(k): _paired(v) for k, v in (entry.get("paired") or {}).items()}
    found = Round(
        name=name or f"round {int(entry['round'])}",
        number=1 if name else int(entry["round"]),
        steps=_qualities(entry.get("steps")),
        paired={k: pair for k, pair in sorted(paired.items()) if pair is not None},
        num_distill_steps=entry.get("num_distill_steps"),
        divergence=entry.get("divergence"),
        **{name: _number(entry.get(name)) for name in ROUND_NUMBERS},
    )
    return dataclasses.replace(found, gain_share=None) if found.nothing_to_gain else found
