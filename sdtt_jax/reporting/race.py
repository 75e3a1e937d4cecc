"""The race: quality against latency, of the sampler at every number of steps and of causal models."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sdtt_jax.reporting.chart_parts import colour_style, end_labels, figure, y_axis
from sdtt_jax.reporting.evaluations import Point
from sdtt_jax.reporting.palette import LIGHT, number, round_colours
from sdtt_jax.reporting.picture import FONT, frame
from sdtt_jax.reporting.svg import Scale, log_ticks, padded, path, tag

SIZE = (10.4, 4.4)


def race_chart(
    points: Sequence[Point], batch: int, colours: Mapping[str, str], width: float, height: float
) -> Markup:
    """Generative perplexity against seconds per batch on log axes, for the report; entropy under the pointer.

    A point of a causal model is a square; labels at points are numbers of steps. `colours` are CSS variables
    by model; one that has none gets the accent.
    """
    if not points:
        return Markup("")
    left, right, top, bottom = 40.0, width - 116, 34.0, height - 42
    x = Scale(*padded([p.seconds for p in points], log=True), left + 8, right - 8, log=True)
    y = Scale(
        *padded([b for p in points for b in (p.low, p.high)], log=True), bottom, top, log=True
    )
    title = f"Generative perplexity against latency, batch {batch}"
    parts = [tag("text", title, class_="title", x=0, y=14)]
    parts += y_axis(log_ticks(y.low, y.high), y, left, right)
    for tick in log_ticks(x.low, x.high, 4):
        at = x(tick)
        parts.append(tag("path", class_="tickmark", d=path([(at, bottom), (at, bottom + 4)])))
        text = short_number(tick)
        parts.append(tag("text", text, class_="tick", x=at, y=bottom + 18, text_anchor="middle"))
    parts.append(tag("path", class_="baseline", d=path([(left, bottom), (right, bottom)])))
    middle = (left + right) / 2
    parts.append(
        tag(
            "text", "seconds per batch", class_="axis", x=middle, y=height - 6, text_anchor="middle"
        )
    )
    ends, hover = [], []
    for model, group in _by_model(points):
        colour = colours.get(model, "accent")
        style = colour_style(colour)
        places = [(x(p.seconds), y(p.gen_ppl)) for p in group]
        if len(places) > 1:
            parts.append(tag("path", class_="line", d=path(places), style=style))
        for point, (px, py) in zip(group, places, strict=True):
            interval = path([(px, y(point.low)), (px, y(point.high))])
            parts.append(tag("path", class_="interval", d=interval, style=style))
            if point.causal:
                box = {"x": px - 4, "y": py - 4, "width": 8, "height": 8}
                parts.append(tag("rect", class_="dot", style=style, **box))
            else:
                parts.append(tag("circle", class_="dot", cx=px, cy=py, r=3.8, style=style))
                parts.append(tag("text", _label(point), class_="tick", x=px + 6, y=py - 6))
            steps = f", {point.num_steps} steps" if point.num_steps else ""
            hover.append(
                {
                    "at": round(px, 1),
                    "title": model + steps,
                    "rows": [
                        [colour, "perplexity", number(point.gen_ppl)],
                        ["", "entropy", number(point.entropy)],
                        ["", "seconds", number(point.seconds)],
                    ],
                }
            )
        ends.append((model, colour, places[-1][1], places[-1][0]))
    parts += end_labels(ends, right, top, bottom)
    hover.sort(key=lambda entry: float(str(entry["at"])))
    return figure(width, height, parts, title, hover, (top, bottom))


def write_race(points: Sequence[Point], batch: int, target: Path) -> Path:
    """The same as a picture, PNG or SVG by the suffix of `target`, with entropy against latency beside it."""
    drawing = Figure(figsize=SIZE, facecolor=LIGHT.page)
    FigureCanvasAgg(drawing)
    left, right = drawing.subplots(1, 2, width_ratios=[1.25, 1])
    drawing.subplots_adjust(left=0.06, right=0.97, top=0.88, bottom=0.14, wspace=0.22)
    groups = _by_model(points)
    colours = iter(round_colours(LIGHT, max(sum(not g[0].causal for _, g in groups), 1)))
    for model, group in groups:
        colour = LIGHT.autoregressive if group[0].causal else next(colours)
        _draw(left, model, group, colour, entropy=False)
        _draw(right, model, group, colour, entropy=True)
    _style(left, f"Generative perplexity, batch {batch}", log=True)
    _style(right, "Entropy of the texts, nats", log=False)
    left.legend(frameon=False, fontsize=FONT - 1, labelcolor=LIGHT.ink)
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if target.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": "sdtt_jax"}):
        drawing.savefig(target, dpi=200, metadata=metadata)
    return target


def _by_model(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """In order of appearance, each from few steps to many; causal models last."""
    groups: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.causal):
        groups.setdefault(point.model, []).append(point)
    return [(model, sorted(group, key=lambda p: p.num_steps)) for model, group in groups.items()]


def _label(point: Point) -> str:
    return str(point.num_steps) if point.num_steps else ""


def _draw(axes: Axes, model: str, group: list[Point], colour: str, *, entropy: bool) -> None:
    seconds = [p.seconds for p in group]
    values = [p.entropy if entropy else p.gen_ppl for p in group]
    below = [0.0 if entropy else p.gen_ppl - p.low for p in group]
    above = [0.0 if entropy else p.high - p.gen_ppl for p in group]
    axes.errorbar(
        seconds,
        values,
        yerr=None if entropy else [below, above],
        color=colour,
        linewidth=2,
        elinewidth=1.2,
        marker="s" if group[0].causal else "o",
        markersize=6,
        label=model,
        zorder=3,
    )
    for point, value in zip(group, values, strict=True):
        axes.annotate(
            _label(point),
            (point.seconds, value),
            xytext=(4, 5),
            textcoords="offset points",
            color=LIGHT.muted,
            fontsize=FONT - 2,
        )


def _style(axes: Axes, title: str, *, log: bool) -> None:
    axes.set_xscale("log")
    frame(axes, title, "seconds per batch")
    low, high = axes.get_xlim()
    ticks = log_ticks(low, high, 4)
    axes.set_xticks(ticks, [short_number(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low, high)
    if log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        ticks = log_ticks(low, high)
        axes.set_yticks(ticks, [short_number(tick) for tick in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(low, high)
    else:
        # Differences of a few per cent should look like that.
        low, high = axes.get_ylim()
        middle = (low + high) / 2
        axes.set_ylim(min(low, 0.95 * middle), max(high, 1.05 * middle))


def short_number(value: float) -> str:
    """A tick of few digits, down to a microsecond."""
    return f"{value:.2g}" if 1e-5 <= value < 100 else number(value, 2)
