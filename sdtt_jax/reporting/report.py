"""Writes the report of a run: one self-contained HTML page."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from flax.traverse_util import flatten_dict
from markupsafe import Markup

from sdtt_jax.paths import as_path, write_text
from sdtt_jax.reporting import palette, run_figures
from sdtt_jax.reporting.drawing import both_widths, css
from sdtt_jax.reporting.evaluations import race, race_batches, tables
from sdtt_jax.reporting.figures import Panel, RowChart
from sdtt_jax.reporting.findings import ENTROPY_TOLERANCE, find
from sdtt_jax.reporting.frontier import frontier_panels
from sdtt_jax.reporting.layout import draw_panel, draw_rows
from sdtt_jax.reporting.race import race_panel
from sdtt_jax.reporting.record import LossCurve, RecordedRun, read_run

WIDE, NARROW = 720.0, 344.0  # widths of a figure on wide and on narrow screens, in pixels
PAIRS_SHOWN = 3  # pairs of sampled texts that stand open; the others unfold
ABBREVIATIONS = ("idlm", "mmd")  # words in the names of stages that are written in capitals


def write_report(workdir: Path | str) -> Path:
    """Writes `report.html` into the directory of a run, whole or not at all, and returns its path.

    The page says what the run has not produced yet. Errors are those of `read_run`.
    """
    target = as_path(workdir) / "report.html"
    write_text(target, render(read_run(workdir)))
    return target


def page(template: str, rounds: int = 1, **values: Any) -> str:
    """A page in the report's style, from one of `templates`, which escapes every value that it shows.

    `rounds` is how many rounds have colours.
    """
    loader = jinja2.PackageLoader("sdtt_jax.reporting", "templates")
    templates = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = palette.number, palette.count, palette.duration, palette.percent
    templates.filters |= {function.__name__: function for function in shown}
    style, script = (
        # Our own files, free of closing tags: to escape them would break them.
        Markup(loader.get_source(templates, name)[0])
        for name in ("report.css", "report.js")
    )
    return templates.get_template(template).render(
        style=Markup(css()) + style,
        script=script,
        light=Markup(palette.css_variables(palette.LIGHT, rounds)),
        dark=Markup(palette.css_variables(palette.DARK, rounds)),
        **values,
    )


def render(run: RecordedRun) -> str:
    """The page as text."""
    rounds = max(1, len(run.students), *(curve.round for curve in run.curves))
    curves = run_figures.quality_curves(run)
    return page(
        "report.html",
        rounds,
        run=run,
        findings=find(run),
        figures=figures(run),
        columns=sorted({k for curve in curves for k in curve.steps}),
        rows=curves,
        before_idlm={few.calls: few.matched for few in run.first_few_calls},
        sample_sets=sample_sets(run),
        pairs_shown=PAIRS_SHOWN,
        settings=settings(run),
        stages=stages(run),
        evaluation_tables=tables(run.evaluations),
        command=command(run),
        has_file=bool(run.config.get("config_file")),
        has_overrides=_overrides(run) is not None,
        entropy_tolerance=ENTROPY_TOLERANCE,
    )


def command(run: RecordedRun) -> str:
    """The command that repeats a run, quoted for a shell; of older runs without the fields that it gave."""
    config = quoted(str(run.config.get("config_file") or "CONFIG.py"))
    words = ["python -m experiments.run", f"--config={config}", "--workdir=DIR"]
    for override in _overrides(run) or ():
        field, _, value = override.partition("=")
        words.append(f"--config.{field}={quoted(value)}")
    return " ".join(words)


def _overrides(run: RecordedRun) -> list[str] | None:
    """Each FIELD=VALUE of the run's command line; None if they were not recorded."""
    found = run.config.get("overrides")
    return [str(each) for each in found] if isinstance(found, list) else None


def quoted(value: str) -> str:
    """A value as a shell reads it: bare if it can be, or in the quotes that it does not contain itself."""
    double = "'" in value and not re.search(r'["$`\\!]', value)
    return f'"{value}"' if double else shlex.quote(value)


def figures(run: RecordedRun) -> dict[str, Markup | list[Markup]]:
    """All figures by name; an empty one has nothing to draw."""
    races = [
        race_panel(race(run.evaluations, batch), batch, _colours(run))
        for batch in race_batches(run.evaluations)
    ]
    quality = run_figures.quality_panel
    several = {curve.stage for curve in run.curves if curve.round > 1}
    losses = [
        run_figures.loss_panel(curve, *_title_and_colour(curve, numbered=curve.stage in several))
        for curve in run.curves
    ]
    return {
        "perplexity": panel_figure(quality(run), (610, 440), (NARROW, 340)),
        "entropy": panel_figure(quality(run, entropy=True), (430, 440), (NARROW, 280)),
        "few_calls": panel_figure(run_figures.few_calls_panel(run), (WIDE, 380)),
        "forest": _rows_figure(run_figures.forest_chart(run)),
        "gain": _rows_figure(run_figures.gain_chart(run)),
        "races": [panel_figure(panel) for panel in races if panel],
        "frontiers": [panel_figure(p) for p in frontier_panels(run.evaluations, _colours(run))],
        "losses": [draw_panel(loss, 336, 190).svg() for loss in losses if loss],
    }


def _colours(run: RecordedRun) -> dict[str, str]:
    """The colours of a run's models, by the names of their evaluations."""
    rounds = [f"round_{r.number:02d}" for r in run.rounds]
    names = [*rounds, *(f"{r.name}_{r.number:02d}" for r in run.others)]
    colours = {name: f"r{i}" for i, name in enumerate(names, start=1)}
    return colours | {"teacher": "teacher"}


def panel_figure(
    panel: Panel | None,
    wide: tuple[float, float] = (WIDE, 400),
    narrow: tuple[float, float] = (NARROW, 320),
) -> Markup:
    """A panel in its two sizes (width, height), for wide and for narrow screens; empty without a panel."""
    if panel is None:
        return Markup("")
    return both_widths(draw_panel(panel, *wide), draw_panel(panel, *narrow))


def _rows_figure(rows: RowChart | None) -> Markup:
    if rows is None:
        return Markup("")
    return both_widths(draw_rows(rows, WIDE), draw_rows(rows, NARROW, narrow=True))


def _title_and_colour(curve: LossCurve, *, numbered: bool) -> tuple[str, str]:
    """A training curve's title, with its round if `numbered`, and its colour."""
    if curve.stage == "distill":
        number_of_round = max(curve.round, 1)
        return f"Round {number_of_round}", f"r{number_of_round}"
    colour = curve.stage if curve.stage in ("teacher", "judge") else "muted"
    words = [word.upper() if word in ABBREVIATIONS else word for word in curve.stage.split("_")]
    title = " ".join(words)
    return title[:1].upper() + title[1:] + f", round {curve.round}" * numbered, colour


def sample_sets(run: RecordedRun) -> list[dict[str, Any]]:
    """One set of samples per tab: teacher next to student at each number of steps, then references."""
    teacher, student = (run.texts.get(name) or {} for name in ("teacher", "student"))
    sets: dict[str, list[tuple[str, str, Any]]] = {
        palette.steps_text(steps): [
            ("Teacher", "teacher", teacher.get(str(steps))),
            ("Student", "r", student.get(str(steps))),
        ]
        for steps in run.sample_steps
    }
    sets["For comparison"] = [
        ("Real text", "data", run.texts.get("data")),
        ("Causal model", "autoregressive", run.texts.get("autoregressive")),
    ]
    known = {title: [column for column in sets[title] if column[2]] for title in sets}
    return [{"title": title, "columns": columns} for title, columns in known.items() if columns]


def settings(run: RecordedRun) -> list[tuple[str, list[tuple[str, str]]]]:
    """The config by section, nested fields with dotted names; plain fields come first.

    Counts of the prepared data come last.
    """
    sections = {name: v for name, v in run.settings.items() if isinstance(v, Mapping)}
    plain = {name: v for name, v in run.settings.items() if name not in sections}
    named = {"run": plain, **sections, "data, as prepared": run.data_info}
    flat = {name: flatten_dict(dict(fields), sep=".") for name, fields in named.items() if fields}
    return [(name, [(k, _shown(v)) for k, v in fields.items()]) for name, fields in flat.items()]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(_shown(v) for v in value)
    return str(value)


def stages(run: RecordedRun) -> list[dict[str, Any]]:
    """Seconds by stage with their share of the whole, and the speed of those that train."""
    whole = sum(run.timing.values())
    # Of a stage with several curves, the first counts.
    curves = [curve for curve in reversed(run.curves) if curve.tokens_per_second is not None]
    speeds = {curve.stage: curve.tokens_per_second for curve in curves}
    return [
        {"name": stage, "seconds": seconds, "share": seconds / whole, "speed": speeds.get(stage)}
        for stage, seconds in run.timing.items()
    ]
