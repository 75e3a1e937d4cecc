"""The figure of the exact laboratory: what each round does to the samples, computed and trained.

One panel per divergence: KL(samples ‖ chain) against the number of sampling steps. Lines are exact
optima, rings are trained students. Drawn from the record that `experiments.exact` writes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from sdtt_jax.reporting.palette import LIGHT, number, round_colours
from sdtt_jax.reporting.svg import spread

PANEL = (5.3, 4.5)
"""Width and height of one panel, in inches."""

FONT = 11.0
NAMES = {
    "kl-bwd": "KL(student ‖ teacher)",
    "kl-fwd": "KL(teacher ‖ student)",
    "mse": "squared log-probabilities",
    "tvd": "total variation",
    "log-l1": "absolute log-probabilities",
}
_ALIKE = 1.02  # rounds within this factor of the teacher's KL, everywhere, read as no change


def write_exact_figure(record: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draws `record` to `exact.svg` and `exact.png` in `directory`; returns their paths.

    Args:
      record: see `experiments.exact`.
      directory: exists.
    """
    figure = draw(record)
    paths = [directory / "exact.svg", directory / "exact.png"]
    # A fixed salt and no date make the SVG of the same record the same file.
    with rc_context({"svg.hashsalt": "sdtt_jax"}):
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=200)
    return paths


def draw(record: Mapping[str, Any]) -> Figure:
    """One panel for each divergence in `record["rounds"]`, on common axes."""
    rounds = record["rounds"]
    figure = Figure(figsize=(PANEL[0] * len(rounds), PANEL[1]), facecolor=LIGHT.page)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(rounds), sharex=True, sharey=True, squeeze=False)[0]
    width = PANEL[0] * len(rounds)
    figure.subplots_adjust(
        left=0.7 / width, right=1 - 1.15 / width, top=0.83, bottom=0.13, wspace=0.5
    )
    for axes, divergence in zip(panels, rounds, strict=True):
        _panel(axes, record, divergence)
    _style(panels, record)
    for axes, divergence in zip(panels, rounds, strict=True):
        _labels(axes, record, divergence)
    return figure


def _curve(steps: Mapping[str, Mapping[str, float]]) -> tuple[list[int], list[float]]:
    known = {int(n): values["kl"] for n, values in steps.items() if values["kl"] > 0}
    order = sorted(known)
    return order, [known[n] for n in order]


def _panel(axes: Axes, record: Mapping[str, Any], divergence: str) -> None:
    rounds = record["rounds"][divergence]
    colours = round_colours(LIGHT, len(rounds))
    axes.plot(*_curve(record["teacher"]["steps"]), color=LIGHT.teacher, linewidth=2.6, zorder=3)
    for number_of, (entry, colour) in enumerate(zip(rounds, colours, strict=True)):
        axes.plot(*_curve(entry["steps"]), color=colour, linewidth=2, zorder=4 + number_of)
        if "trained" in entry:
            steps, values = _curve(entry["trained"]["steps"])
            axes.plot(
                steps,
                values,
                linestyle="none",
                marker="o",
                markersize=6,
                markerfacecolor=LIGHT.page,
                markeredgecolor=colour,
                markeredgewidth=1.6,
                zorder=20 + number_of,
            )


def _style(panels: list[Axes], record: Mapping[str, Any]) -> None:
    steps = sorted(int(n) for n in record["teacher"]["steps"])
    ticks = [n for n in steps if n & (n - 1) == 0]  # powers of two
    for axes in panels:
        axes.set_facecolor(LIGHT.page)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(steps[0] / 1.1, steps[-1] * 1.1)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(LIGHT.muted)
        axes.grid(axis="y", color=LIGHT.grid, linewidth=0.9)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0, labelsize=FONT - 0.5, labelcolor=LIGHT.muted)
        axes.tick_params(labelleft=True)
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("sampling steps", fontsize=FONT, color=LIGHT.muted)


def _labels(axes: Axes, record: Mapping[str, Any], divergence: str) -> None:
    """Title, what the panel says at as many steps as tokens, and names in the right margin."""
    rounds = record["rounds"][divergence]
    teacher = record["teacher"]["steps"]
    alike = all(
        1 / _ALIKE < entry["steps"][n]["kl"] / teacher[n]["kl"] < _ALIKE
        for entry in rounds
        for n in teacher
    )
    axes.text(
        0.0,
        1.125,
        f"{divergence}   {NAMES[divergence]}",
        transform=axes.transAxes,
        fontsize=FONT + 2,
        fontweight="bold",
        color=LIGHT.ink,
    )
    axes.text(
        0.0,
        1.045,
        f"KL(samples ‖ language), nats   ·   {_finding(record, divergence, alike)}",
        transform=axes.transAxes,
        fontsize=FONT - 0.5,
        color=LIGHT.muted,
    )
    colours = round_colours(LIGHT, len(rounds))
    ends = [("teacher", LIGHT.teacher, _curve(teacher)[1][-1])]
    if alike:
        ends[0] = ("teacher and\nall rounds", colours[-1], ends[0][2])
    else:
        ends += [
            (f"round {i}", colour, _curve(entry["steps"])[1][-1])
            for i, (entry, colour) in enumerate(zip(rounds, colours, strict=True), start=1)
        ]
    to_share = axes.transScale + axes.transLimits
    shares = [float(to_share.transform((1.0, value))[1]) for _, _, value in ends]
    places = spread(shares, 0.062, 0.0, 1.0)
    for (label, colour, _), share, place in zip(ends, shares, places, strict=True):
        axes.annotate(
            label,
            xy=(1.0, share),
            xytext=(1.05, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=FONT,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.45, "linewidth": 0.9},
        )
    if divergence == next(iter(record["rounds"])):
        _key(axes, trained=any("trained" in entry for entry in rounds))


def _finding(record: Mapping[str, Any], divergence: str, alike: bool) -> str:
    if alike:
        return "no round changes anything"
    at = str(record["world"]["length"])
    steps = at if at in record["teacher"]["steps"] else max(record["teacher"]["steps"], key=int)
    before = record["teacher"]["steps"][steps]["kl"]
    after = record["rounds"][divergence][-1]["steps"][steps]["kl"]
    return f"{steps} steps: {number(before, 2)} → {number(after, 2)}"


def _key(axes: Axes, *, trained: bool) -> None:
    """What a line and a ring are, in the empty lower left corner."""
    axes.plot([0.035, 0.095], [0.14, 0.14], color=LIGHT.ink, linewidth=2, transform=axes.transAxes)
    axes.text(
        0.115,
        0.14,
        "exact optimum",
        transform=axes.transAxes,
        verticalalignment="center",
        fontsize=FONT,
        color=LIGHT.ink,
    )
    if trained:
        axes.plot(
            [0.065],
            [0.065],
            linestyle="none",
            marker="o",
            markersize=6,
            markerfacecolor=LIGHT.page,
            markeredgecolor=LIGHT.ink,
            markeredgewidth=1.6,
            transform=axes.transAxes,
        )
        axes.text(
            0.115,
            0.065,
            "trained student",
            transform=axes.transAxes,
            verticalalignment="center",
            fontsize=FONT,
            color=LIGHT.ink,
        )
