"""Quality against number of steps: the report's main charts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sdtt_jax.reporting.chart_parts import (
    colour_style,
    end_labels,
    figure,
    marker,
    steps_axis,
    y_axis,
)
from sdtt_jax.reporting.findings import ENTROPY_TOLERANCE
from sdtt_jax.reporting.palette import number
from sdtt_jax.reporting.record import Quality, Run
from sdtt_jax.reporting.svg import Scale, linear_ticks, log_ticks, padded, path, tag


@dataclass(frozen=True)
class Series:
    """One model's curve: label, CSS colour variable, and quality by number of steps."""

    label: str
    colour: str
    steps: dict[int, Quality]


@dataclass(frozen=True)
class Reference:
    """A horizontal reference line with its label."""

    label: str
    colour: str
    value: float


def quality_series(run: Run) -> list[Series]:
    """Teacher and rounds, in order, as far as they were measured."""
    series = [Series("teacher", "teacher", run.teacher)] if run.teacher else []
    series += [
        Series(f"round {r.number}", f"r{i}", r.steps)
        for i, r in enumerate(run.rounds, start=1)
        if r.steps
    ]
    return series


def quality_references(run: Run, *, entropy: bool) -> list[Reference]:
    """Baseline and real text as reference lines, of perplexity or of entropy."""
    baseline, data = run.autoregressive, run.data
    if entropy:
        values = (baseline.entropy if baseline else None, run.data_entropy)
    else:
        values = (baseline.gen_ppl if baseline else None, data.gen_ppl if data else None)
    names = (("autoregressive", "autoregressive"), ("real text", "data"))
    return [
        Reference(label, colour, value)
        for (label, colour), value in zip(names, values, strict=True)
        if value is not None
    ]


def near_data(run: Run) -> tuple[float, float] | None:
    """The range of entropy that counts as near the data's: it keeps the axis from making much
    of differences that are small."""
    if run.data_entropy is None:
        return None
    away = abs(run.data_entropy) * ENTROPY_TOLERANCE
    return run.data_entropy - away, run.data_entropy + away


def perplexity_chart(run: Run, width: float, height: float) -> Markup:
    """Generative perplexity against number of steps on log axes, with 95 % bands."""
    return _steps_chart(
        run,
        quality_references(run, entropy=False),
        value=lambda q: q.gen_ppl,
        size=(width, height),
        log=True,
        title="Generative perplexity",
        description="Generative perplexity against number of sampling steps, by model",
    )


def entropy_chart(run: Run, width: float, height: float) -> Markup:
    """Entropy of the sampled texts in nats against number of steps, beside that of the data."""
    return _steps_chart(
        run,
        quality_references(run, entropy=True),
        value=lambda q: q.entropy,
        size=(width, height),
        log=False,
        title="Entropy, nats",
        near=near_data(run),
        description="Entropy of the sampled texts against number of sampling steps, by model",
    )


def _steps_chart(
    run: Run,
    references: Sequence[Reference],
    *,
    value: Callable[[Quality], float | None],
    size: tuple[float, float],
    log: bool,
    title: str,
    description: str,
    near: tuple[float, float] | None = None,
) -> Markup:
    width, height = size
    lines = [
        (s, {k: v for k, q in s.steps.items() if (v := value(q)) is not None})
        for s in quality_series(run)
    ]
    lines = [(s, points) for s, points in lines if points]
    if not lines:
        return Markup("")
    measured = sorted({k for _, points in lines for k in points})
    values = [v for _, points in lines for v in points.values()]
    values += [r.value for r in references]
    if log:
        values += [b for s, _ in lines for q in s.steps.values() for b in (q.low, q.high) if b]
    left, right, top, bottom = 40.0, width - 116, 34.0, height - 42
    x = Scale(measured[0], measured[-1], left + 12, right - 12, log=True)
    if near is not None:
        values += near
    low, high = padded(values, log=log)
    y = Scale(low, high, bottom, top, log=log)
    ticks = log_ticks(low, high) if log else linear_ticks(low, high, 5)
    parts = [tag("text", title, class_="title", x=0, y=14)]
    parts += y_axis(ticks, y, left, right)
    parts += steps_axis(measured, x, bottom)
    parts.append(tag("path", class_="baseline", d=path([(left, bottom), (right, bottom)])))
    parts.append(
        tag(
            "text",
            "sampling steps",
            class_="axis",
            x=(left + right) / 2,
            y=height - 6,
            text_anchor="middle",
        )
    )
    if near is not None:
        corners = [(left, y(near[1])), (right, y(near[1])), (right, y(near[0])), (left, y(near[0]))]
        parts.append(tag("path", class_="near", d=path(corners), style=colour_style("data")))
    for reference in references:
        parts.append(
            tag(
                "path",
                class_="reference",
                d=path([(left, y(reference.value)), (right, y(reference.value))]),
                style=colour_style(reference.colour),
            )
        )
    if log:
        parts += [_band(s, x, y) for s, _ in lines]
    for series, points in lines:
        at = [(x(k), y(v)) for k, v in points.items()]
        style = colour_style(series.colour)
        parts.append(tag("path", class_="line", d=path(at), style=style))
        parts += [marker(series.label, px, py, style) for px, py in at]
    ends = [(s.label, s.colour, y(points[max(points)]), x(max(points))) for s, points in lines]
    ends += [(r.label, r.colour, y(r.value), right) for r in references]
    parts += end_labels(ends, right, top, bottom)
    hover = [
        {
            "at": round(x(k), 1),
            "title": f"{k} steps" if k > 1 else "1 step",
            "rows": [
                [s.colour, s.label, _with_interval(s.steps[k]) if log else number(p[k])]
                for s, p in lines
                if k in p
            ]
            + [[r.colour, r.label, number(r.value)] for r in references],
        }
        for k in measured
    ]
    return figure(width, height, parts, description, hover, (top, bottom))


def _with_interval(quality: Quality) -> str:
    if quality.low is None or quality.high is None:
        return number(quality.gen_ppl)
    return f"{number(quality.gen_ppl)} ({number(quality.low)}–{number(quality.high)})"


def _band(series: Series, x: Scale, y: Scale) -> Markup:
    bounds = [(k, q.low, q.high) for k, q in series.steps.items() if q.low and q.high]
    upper = [(x(k), y(high)) for k, _, high in bounds]
    lower = [(x(k), y(low)) for k, low, _ in reversed(bounds)]
    if not bounds:
        return Markup("")
    return tag(
        "path", class_="band", d=path(upper + lower) + "Z", style=colour_style(series.colour)
    )
