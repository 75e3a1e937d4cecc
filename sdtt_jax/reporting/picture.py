"""The report's main figure as a picture for a README: perplexity and entropy against steps."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from sdtt_jax.errors import DataError
from sdtt_jax.reporting.charts import Series, near_data, quality_references, quality_series
from sdtt_jax.reporting.palette import LIGHT, number, round_colours
from sdtt_jax.reporting.record import Run, read_run
from sdtt_jax.reporting.svg import log_ticks, spread

SIZE = (10.4, 4.1)
"""Width and height in inches."""

FONT = 10.5


def write_picture(workdir: Path | str, path: Path | str) -> Path:
    """Draws the main figure of a run to `path`, as PNG or SVG by its suffix; returns the path.

    Raises DataError if the run has not been evaluated yet, or its files are malformed.
    """
    run, path = read_run(workdir), Path(path)
    if not run.teacher:
        raise DataError(
            f"{workdir} holds no measured quality to draw: run the evaluate stage first."
        )
    figure = draw(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed salt and no date make the SVG of the same run the same file.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": "sdtt_jax"}):
        figure.savefig(path, dpi=200, metadata=metadata)
    return path


def draw(run: Run) -> Figure:
    """Two panels side by side, directly labelled at their right edges."""
    figure = Figure(figsize=SIZE, facecolor=LIGHT.page)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    figure.subplots_adjust(left=0.05, right=0.875, top=0.89, bottom=0.135, wspace=0.56)
    for axes, entropy in ((left, False), (right, True)):
        _panel(axes, run, entropy=entropy)
    return figure


def _panel(axes: Axes, run: Run, *, entropy: bool) -> None:
    colours = _colours(run)
    references = quality_references(run, entropy=entropy)
    near = near_data(run)
    if entropy and near:
        axes.axhspan(*near, color=LIGHT.data, alpha=0.07, linewidth=0)
    steps = sorted({k for s in quality_series(run) for k in s.steps})
    axes.set_xscale("log")
    axes.set_yscale("linear" if entropy else "log")
    ends = []
    for series in quality_series(run):
        points = {k: q.entropy if entropy else q.gen_ppl for k, q in series.steps.items()}
        known = {k: v for k, v in points.items() if v is not None}
        if not known:
            continue
        colour = colours[series.colour]
        teacher = series.label == "teacher"
        axes.plot(
            list(known),
            list(known.values()),
            color=colour,
            linewidth=2,
            marker="s" if teacher else "o",
            markersize=5.5 if teacher else 6,
            markerfacecolor=LIGHT.page if teacher else colour,
            markeredgecolor=colour if teacher else LIGHT.page,
            markeredgewidth=1.4 if teacher else 1,
            zorder=3,
        )
        if not entropy:
            _band(axes, series, colour)
        ends.append((series.label, colour, known[max(known)]))
    for reference in references:
        colour = colours[reference.colour]
        axes.axhline(reference.value, color=colour, linewidth=1.3, linestyle=(0, (4, 3)), zorder=2)
        ends.append((reference.label, colour, reference.value))
    _style(axes, steps, "Entropy, nats" if entropy else "Generative perplexity", log=not entropy)
    _labels(axes, ends)


def _band(axes: Axes, series: Series, colour: str) -> None:
    bounds = [(k, q.low, q.high) for k, q in series.steps.items() if q.low and q.high]
    if bounds:
        steps, low, high = zip(*bounds, strict=True)
        axes.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0)


def frame(axes: Axes, title: str, along: str) -> None:
    """Background, title, name of the horizontal axis, grid: what every picture of the README has."""
    axes.set_facecolor(LIGHT.page)
    axes.set_title(
        title, loc="left", fontsize=FONT + 1.5, fontweight="bold", color=LIGHT.ink, pad=10
    )
    axes.set_xlabel(along, fontsize=FONT, color=LIGHT.muted)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT.muted)
    axes.grid(axis="y", color=LIGHT.grid, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=FONT - 0.5, labelcolor=LIGHT.muted)


def _style(axes: Axes, steps: list[int], title: str, *, log: bool) -> None:
    frame(axes, title, "sampling steps")
    axes.set_xticks(steps, [str(k) for k in steps])
    axes.xaxis.set_minor_locator(NullLocator())
    if log:
        low, high = axes.get_ylim()
        axes.set_yticks(log_ticks(low, high))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 2)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(low, high)


def _labels(axes: Axes, ends: list[tuple[str, str, float]]) -> None:
    """Labels in the right margin, moved apart, with a thin line to what they name."""
    to_share = axes.transScale + axes.transLimits
    shares = [float(to_share.transform((1.0, value))[1]) for _, _, value in ends]
    places = spread(shares, 0.058, 0.0, 1.0)
    for (label, colour, _), share, place in zip(ends, shares, places, strict=True):
        axes.annotate(
            label,
            xy=(1.0, share),
            xytext=(1.06, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=FONT,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.45, "linewidth": 0.9},
        )


def _colours(run: Run) -> dict[str, str]:
    fixed = {
        "teacher": LIGHT.teacher,
        "autoregressive": LIGHT.autoregressive,
        "data": LIGHT.data,
    }
    rounds = round_colours(LIGHT, max(len(run.rounds), 1))
    return fixed | {f"r{i}": colour for i, colour in enumerate(rounds, start=1)}
