"""The figures of a run: quality against steps, what each round changed, training curves."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdtt_jax.reporting.figures import Axis, Panel, Row, RowChart, Series, Tip
from sdtt_jax.reporting.findings import ENTROPY_TOLERANCE
from sdtt_jax.reporting.palette import number, percent, steps_text
from sdtt_jax.reporting.record import FewCalls, LossCurve, Quality, RecordedRun, Round
from sdtt_jax.reporting.scales import linear_ticks, padded

SHARES_SHOWN = (-1.0, 1.5)  # gain shares between which the axis stays
CURVE_POINTS = 200  # about how many points of a training curve are drawn


class Curve(NamedTuple):
    """One model's quality by number of steps, with its label and colour."""

    label: str
    colour: str
    steps: dict[int, Quality]


def quality_curves(run: RecordedRun) -> list[Curve]:
    """The curves of teacher and students that were measured, in order."""
    curves = [Curve("teacher", "teacher", run.teacher)] if run.teacher else []
    curves += [
        Curve(student.name, f"r{i}", student.steps)
        for i, student in enumerate(run.students, start=1)
        if student.steps
    ]
    return curves


def quality_panel(run: RecordedRun, *, entropy: bool = False) -> Panel | None:
    """Generative perplexity against number of steps on log axes, with 95 % bands; None if none was measured.

    With `entropy`, it shows the entropy of the texts in nats, and a strip around that of the data, which also
    keeps the axis from magnifying small differences.
    """
    series = [s for curve in quality_curves(run) if (s := _quality_series(curve, entropy)).x]
    if not series:
        return None
    strip = None
    if entropy and run.data_entropy is not None:
        margin = abs(run.data_entropy) * ENTROPY_TOLERANCE
        strip = (run.data_entropy - margin, run.data_entropy + margin)
    references = _references(run, entropy)
    steps = sorted({k for s in series for k in s.x})
    what = "Entropy of the sampled texts" if entropy else "Generative perplexity"
    return Panel(
        title="Entropy, nats" if entropy else what,
        description=f"{what} against number of sampling steps, by model",
        x=Axis("sampling steps", log=True, ticks=tuple(steps)),
        y=Axis(log=not entropy, reaches=strip or ()),
        series=(*series, *references),
        strip=strip,
        tips=tuple(_quality_tip(int(k), [*series, *references]) for k in steps),
    )


def few_calls_panel(run: RecordedRun) -> Panel | None:
    """Teacher and noise-coupled students at very few calls, with 95 % bands; None if nothing can be drawn.

    All are at the entropy of real text, or a student above it; pairs that do not reach it are left out. The
    students' bands are the intervals of their difference from the teacher, whose texts are drawn
    independently.
    """
    teacher = run.teacher_few_calls
    if not run.few_calls or not teacher:
        return None
    above = any(few.reached and few.surplus for few in (*run.first_few_calls, *run.few_calls))
    label = "and IDLM" if run.first_few_calls else "noise-coupled"
    students = [
        _matched("noise-coupled", "coupled_first", run.first_few_calls),
        _matched(label, "coupled", run.few_calls),
    ]
    series = [
        _quality_series(Curve("teacher", "teacher", dict(teacher)), entropy=False),
        *(student for student in students if student.x),
    ]
    references = _references(run, entropy=False)
    return Panel(
        title="Perplexity at very few calls",
        description="Generative perplexity against number of network calls: teacher and noise-coupled "
        "student, at the entropy of real text" + (" or above it" if above else ""),
        x=Axis("network calls", log=True, ticks=tuple(float(n) for n in teacher)),
        y=Axis(log=True),
        series=(*series, *references),
        tips=tuple(_quality_tip(n, [*series, *references]) for n in teacher),
    )


def _matched(label: str, colour: str, found: Sequence[FewCalls]) -> Series:
    """A noise-coupled student at the entropy of real text, with the interval of its change as a band."""
    found = [few for few in found if few.reached]
    low, high = (
        tuple(
            few.matched.gen_ppl * math.exp(getattr(few.paired, end) - few.paired.log_ratio)
            for few in found
        )
        for end in ("low", "high")
    )
    calls = tuple(float(few.calls) for few in found)
    return Series(label, colour, calls, tuple(few.matched.gen_ppl for few in found), low, high)


def forest_chart(run: RecordedRun) -> RowChart | None:
    """Paired change against the first teacher, same steps and keys: a row for each student, by steps."""
    rows = []
    for steps in sorted({k for student in run.students for k in student.paired}):
        head = steps_text(steps)
        for index, student in enumerate(run.students, start=1):
            if pair := student.paired.get(steps):
                change, interval = pair.change
                values = pair.log_ratio, pair.low, pair.high
                details = ("change", change), ("95 %", interval)
                rows.append(Row(head, student.name, f"r{index}", *values, details))
                head = ""
    if not rows:
        return None
    low, high = padded([0.0, *(b for r in rows for b in (r.low, r.high))], log=False, share=0.08)
    percents = linear_ticks(100 * math.expm1(low), 100 * math.expm1(high), 7)
    step = percents[1] - percents[0] if len(percents) > 1 else 1.0
    ticks = tuple((math.log1p(tick / 100), _percent_tick(tick, step)) for tick in percents)
    return RowChart(
        title="Perplexity against the first teacher",
        description="Paired change of generative perplexity with 95 % intervals, by student "
        "and number of steps",
        rows=tuple(rows),
        span=(low, high),
        ticks=ticks,
        directions=("← better", "worse →"),
    )


def _percent_tick(tick: float, step: float) -> str:
    """A tick in percent, with as many decimals as its distance to the next one has."""
    if not tick:
        return "0"
    digits = max(0, math.ceil(-math.log10(step) - 1e-9))
    text = f"{tick:+.{digits}f}".removesuffix(".0")
    return text.replace("-", "−") + "\u202f%"


def gain_chart(run: RecordedRun) -> RowChart | None:
    """Share of the reachable gain that each round took, with the divergences in nats.

    A share outside SHARES_SHOWN, which only a round that learned next to nothing has, is drawn
    up to the edge and written in full.
    """
    rows = [
        _gain_row(index, round_)
        for index, round_ in enumerate(run.rounds, start=1)
        if round_.gain_share is not None or round_.nothing_to_gain
    ]
    if not rows:
        return None
    shares = [row.value for row in rows]
    span = (max(SHARES_SHOWN[0], min(0.0, *shares)), min(SHARES_SHOWN[1], max(1.0, *shares)))
    return RowChart(
        title="Share of the reachable gain",
        description="Gain share of each round with the divergence of teacher, student, and the floor",
        rows=tuple(rows),
        span=span,
        ticks=tuple(
            (tick, f"{100 * tick:.0f}\u202f%".replace("-", "−")) for tick in linear_ticks(*span)
        ),
        bars=True,
    )


def loss_panel(curve: LossCurve, title: str, colour: str) -> Panel | None:
    """Training loss on a log axis: the raw values pale, their running mean over them.

    A loss that no log axis can show, such as a divergence estimated by sampling that dips below zero, is left
    out; None if nothing else is left.
    """
    logged = [(s, v) for s, v in zip(curve.steps, curve.losses, strict=True) if v > 0]
    if not logged:
        return None
    smooth = running_mean([v for _, v in logged])
    kept = sorted({*range(0, len(logged), math.ceil(len(logged) / CURVE_POINTS)), len(logged) - 1})
    x = tuple(float(logged[i][0]) for i in kept)
    raw, mean = tuple(logged[i][1] for i in kept), tuple(smooth[i] for i in kept)
    return Panel(
        title=title,
        description=f"Training loss: {title}",
        x=Axis(num_ticks=3, reaches=(0.0, 1.0)),
        y=Axis(log=True, num_ticks=3),
        series=(
            Series("", colour, x, raw, line="raw", marker=""),
            Series("", colour, x, mean, marker=""),
        ),
        result=number(mean[-1]),
        tips=tuple(
            Tip(s, f"step {s:.0f}", ((colour, "mean", number(m, 4)), ("", "raw", number(v, 4))))
            for s, v, m in zip(x, raw, mean, strict=True)
        ),
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a twentieth of the values, cut short at both ends.

    Centred, because a mean over the past alone lies above a falling curve.
    """
    reach = max(2, len(values) // 40)
    sums, index = np.cumsum([0.0, *values]), np.arange(len(values))
    first, end = np.maximum(0, index - reach), np.minimum(len(values), index + reach + 1)
    return ((sums[end] - sums[first]) / (end - first)).tolist()


def _references(run: RecordedRun, entropy: bool) -> list[Series]:
    """Horizontal reference lines for the causal model and for real text, if they were measured."""
    causal, data = run.autoregressive, run.data
    known = (
        ("causal", "causal", getattr(causal, "entropy" if entropy else "gen_ppl", None)),
        ("real text", "data", run.data_entropy if entropy else getattr(data, "gen_ppl", None)),
    )
    return [
        Series(label, colour, (), (value,), line="reference", marker="")
        for label, colour, value in known
        if value is not None
    ]


def _quality_series(curve: Curve, entropy: bool) -> Series:
    """The measured points of a curve; where the interval is not known, it has no width."""
    values = {k: q.entropy if entropy else q.gen_ppl for k, q in curve.steps.items()}
    known = {float(k): v for k, v in values.items() if v is not None}
    measured = curve.steps.values()
    bands = not entropy and any(q.low and q.high for q in measured)
    low = tuple(q.low or q.gen_ppl for q in measured) if bands else ()
    high = tuple(q.high or q.gen_ppl for q in measured) if bands else ()
    # The teacher's points are open squares, which tell it from the rounds without colour, too.
    marker = "open" if curve.colour == "teacher" else "dot"
    x, y = tuple(known), tuple(known.values())
    return Series(curve.label, curve.colour, x, y, low, high, marker=marker)


def _quality_tip(steps: int, series: Sequence[Series]) -> Tip:
    rows = []
    for s in series:
        if steps in s.x or not s.x:
            at = s.x.index(steps) if s.x else 0
            interval = f" ({number(s.low[at])}–{number(s.high[at])})" if s.low else ""
            rows.append((s.colour, s.label, number(s.y[at]) + interval))
    return Tip(steps, steps_text(steps), tuple(rows))


def _gain_row(index: int, round_: Round) -> Row:
    name, share = round_.name, round_.gain_share or 0.0
    text = "at floor" if round_.gain_share is None else percent(share)
    divergences = {
        "teacher": round_.teacher_divergence,
        "student": round_.student_divergence,
        "floor": round_.floor,
    }
    known = [(of, number(value, 4)) for of, value in divergences.items() if value is not None]
    details, note = (("gain share", text), *known), " · ".join(" ".join(pair) for pair in known)
    return Row(name, name, f"r{index}", share, share, share, details, note)
