"""Figures as files: the drawings of the report page, painted by Matplotlib as PNG or SVG.

Matplotlib only puts marks at pixels: frame, ticks and labels are placed by `layout`, as on the
page. Its own axes would be a second layout. Its SVG would not suit the page: the main figure takes
61 KB instead of 15, with colours that no style sheet can change. Turning the page's SVG into PNG
would need another dependency, one that supports CSS variables.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import patches, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path as Path2D

from sdtt_jax.errors import DataError
from sdtt_jax.paths import as_path
from sdtt_jax.reporting import drawing as marks
from sdtt_jax.reporting.drawing import STYLES, Drawing
from sdtt_jax.reporting.evaluations import Evaluation, Point
from sdtt_jax.reporting.exact_figure import exact_panels, measured
from sdtt_jax.reporting.figures import Panel
from sdtt_jax.reporting.frontier import frontier_panels
from sdtt_jax.reporting.layout import draw_panel
from sdtt_jax.reporting.palette import LIGHT, colours, mix
from sdtt_jax.reporting.race import race_panel
from sdtt_jax.reporting.record import read_run
from sdtt_jax.reporting.run_figures import few_calls_panel, quality_panel

INCH = 100.0  # in pixels of a drawing; the file has two pixels for each of them
POINT = 72 / INCH
EDGE, GAP = 20.0, 28.0  # pixels around the drawings of a picture, and between them
ALIGNMENTS = {"start": "left", "middle": "center", "end": "right"}


def write_quality(workdir: Path | str, path: Path | str) -> Path:
    """Draws the main figure of a run: perplexity and entropy against number of steps.

    If the run has a noise-coupled student, its few calls come first. Returns the path, a .png or .svg.

    Raises:
      DataError: the run has not been evaluated yet, or its files are malformed.
    """
    run = read_run(workdir)
    if not run.teacher:
        raise DataError(
            f"{workdir} holds no measured quality to draw: run the evaluate stage first."
        )
    panels = [quality_panel(run), quality_panel(run, entropy=True)]
    widths: Sequence[float] = (560, 440)
    if few_calls := few_calls_panel(run):
        panels, widths = [few_calls, *panels], (470, 470, 400)
    return _write([panels], widths, 400, path, len(run.students))


def write_race(points: Sequence[Point], batch: int, path: Path | str) -> Path:
    """Draws perplexity and entropy against latency, of two or more points of one batch size.

    Returns the path, a .png or .svg.
    """
    panels = [race_panel(points, batch), race_panel(points, batch, entropy=True)]
    return _write([panels], (560, 440), 420, path, len({p.model for p in points if not p.causal}))


def write_frontier(evaluations: Sequence[Evaluation], path: Path | str) -> Path | None:
    """Draws perplexity against entropy, two numbers of steps in each row.

    Returns the path, a .png or .svg; None if no evaluation has items of the suite "frontier".
    """
    panels = frontier_panels(evaluations)
    if not panels:
        return None
    rows = [panels[start : start + 2] for start in range(0, len(panels), 2)]
    # Of the evaluations, only those with such items have a colour: r1, r2, …
    names = {s.colour for panel in panels for s in panel.series} - {"data"}
    return _write(rows, (560, 560), 400, path, max(int(name[1:]) for name in names))


def write_exact(record: Mapping[str, Any], path: Path | str) -> Path | None:
    """Draws what `experiments.exact` writes to results.json: one row per measure, one panel per divergence.

    With one divergence the measures stand side by side. Returns the path, a .png or .svg; None if every
    measure is 0 (for example, of independent tokens): a logarithmic axis has no zero.
    """
    rounds = max(len(entries) for entries in record["rounds"].values())
    drawn = (exact_panels(record, measure) for measure in measured(record))
    rows = [panels for panels in drawn if panels]
    if not rows:
        return None
    if len(record["rounds"]) == 1:
        rows = [[panel for row in rows for panel in row]]
    return _write(rows, [480] * len(rows[0]), 420, path, rounds)


def _write(
    rows: Sequence[Sequence[Panel | None]],
    widths: Sequence[float],
    height: float,
    file: Path | str,
    rounds: int,
) -> Path:
    """Paints rows of panels, in light colours. The same panels give the same file."""
    drawn = [
        # A last row may be shorter.
        [draw_panel(panel, w, height) for panel, w in zip(row, widths, strict=False) if panel]
        for row in rows
    ]
    width = max(sum(d.width + GAP for d in row) for row in drawn) - GAP + 2 * EDGE
    height = max(d.height for row in drawn for d in row)
    whole = len(drawn) * (height + GAP) - GAP + 2 * EDGE
    figure = Figure(figsize=(width / INCH, whole / INCH), facecolor=LIGHT["page"])
    FigureCanvasAgg(figure)
    for index, row in enumerate(drawn):
        left, top = EDGE, whole - EDGE - index * (height + GAP)
        for drawing in row:
            bottom = (top - drawing.height) / whole
            place = (left / width, bottom, drawing.width / width, drawing.height / whole)
            axes = figure.add_axes(place, xlim=(0, drawing.width), ylim=(drawing.height, 0))
            axes.set_axis_off()
            _paint(axes, drawing, colours(LIGHT, rounds))
            left += drawing.width + GAP
    path = as_path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a fixed salt, or with a date, two SVGs of the same panels would differ.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with rc_context({"svg.hashsalt": "sdtt_jax"}):
        figure.savefig(path, dpi=2 * INCH, metadata=metadata)
    return path


def _paint(axes: Axes, drawing: Drawing, colours: dict[str, str]) -> None:
    for order, mark in enumerate(drawing.marks):
        style = STYLES[mark.style]
        named = colours | {"own": colours[mark.colour or "ink"]}
        fill = mix(named[style.fill], colours["ink"], style.ink) if style.fill else "none"
        stroke = named[style.stroke] if style.stroke else "none"
        if isinstance(mark, marks.Text):
            size, weight = style.size * POINT, "bold" if style.weight >= 600 else "normal"
            font: Any = {"fontsize": size, "fontweight": weight, "ha": ALIGNMENTS[mark.anchor]}
            # Names of models may have a $ in them, and are no formulas.
            font |= {"va": "baseline", "parse_math": False}
            axes.text(mark.x, mark.y, mark.text, color=fill, zorder=order, **font)
            continue
        patch = _patch(mark, facecolor=fill, edgecolor=stroke, alpha=style.opacity, zorder=order)
        patch.set_linewidth(style.width * POINT if style.stroke else 0)
        if style.dash:
            patch.set_linestyle((0, [length / style.width for length in style.dash]))
        axes.add_patch(patch)


def _patch(mark: marks.Polyline | marks.Box, **look: Any) -> patches.Patch:
    look |= {"joinstyle": "round", "clip_on": False}
    if isinstance(mark, marks.Polyline):
        points = mark.points + mark.points[:1] * mark.closed
        return patches.PathPatch(Path2D(points, closed=mark.closed), **look)
    corners = patches.BoxStyle("Round", pad=0, rounding_size=mark.radius)
    return patches.FancyBboxPatch((mark.x, mark.y), mark.width, mark.height, corners, **look)
