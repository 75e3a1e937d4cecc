"""The figure of the exact laboratory: what each round does to the samples, computed and trained.

One panel per divergence: a measure of the samples against the number of sampling steps. Lines are
exact optima, rings are trained students; the floor under both and other distillers are drawn where
the record, which `experiments.exact` writes, has them.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdtt_jax.reporting.figures import Axis, Panel, Series
from sdtt_jax.reporting.palette import number

NAMES = {
    "kl-bwd": "KL(student ‖ teacher)",
    "kl-fwd": "KL(teacher ‖ student)",
    "mse": "squared log-probabilities",
    "tvd": "total variation",
    "log-l1": "absolute log-probabilities",
}
MEASURES = {
    "kl": "KL(samples ‖ language), nats",
    "kl_reverse": "KL(language ‖ samples), nats",
    "tv": "total variation",
}
_DISTILLERS = ("data", "judge")  # colours
_ALIKE = 1.02  # rounds within this factor of the teacher everywhere count as no change

Record = Mapping[str, Any]


def exact_panels(record: Record, measure: str = "kl") -> list[Panel]:
    """One panel for each divergence in `record["rounds"]`, on common axes; none if all samples are exact.

    Args:
      record: what `sdtt_jax.laboratory.record` makes.
      measure: one of `MEASURES`.
    """
    panels = [_series(record, divergence, measure) for divergence in record["rounds"]]
    values = tuple(v for series in panels for s in series for v in s.y)
    if not values:
        return []
    steps = [int(n) for n in record["teacher"]["steps"]]
    return [
        Panel(
            title=f"{divergence}   {NAMES[divergence]}",
            description=f"{MEASURES[measure]}, by number of steps, rounds of {divergence}",
            note=f"{MEASURES[measure]}   ·   {_finding(record, divergence, measure)}",
            x=Axis("sampling steps", log=True, ticks=tuple(n for n in steps if n & (n - 1) == 0)),
            y=Axis(log=True, reaches=values),
            series=series,
            key=() if index else _key(record, series, measure),
        )
        for index, (divergence, series) in enumerate(zip(record["rounds"], panels, strict=True))
    ]


def measured(record: Record) -> list[str]:
    """The measures that a record holds; older records have `kl` alone."""
    return [
        name for name in MEASURES if all(name in m for m in record["teacher"]["steps"].values())
    ]


def _series(record: Record, divergence: str, measure: str) -> tuple[Series, ...]:
    rounds, teacher = record["rounds"][divergence], record["teacher"]["steps"]
    alike = _alike(record, divergence, measure)
    lines = [Series("teacher", "teacher", *_curve(teacher, measure), line="heavy", marker="")]
    rings = []
    for number_of, entry in enumerate(rounds, start=1):
        last = number_of == len(rounds)
        label = ("all rounds" if last else "") if alike else f"round {number_of}"
        lines.append(Series(label, f"r{number_of}", *_curve(entry["steps"], measure), marker=""))
        if "trained" in entry:
            x, y = _curve(entry["trained"]["steps"], measure)
            rings.append(Series("", f"r{number_of}", x, y, line="", marker="ring"))
    # they end at few steps, far from the margin, so the key names them
    others = [replace(series, label="") for series in _beside(record, measure)]
    # One that is 0 everywhere has no place on a log axis.
    return tuple(each for each in (*lines, *others, *rings) if each.x)


def _beside(record: Record, measure: str) -> list[Series]:
    """Other distillers, and the floor."""
    names = [name for name in record.get("distillers", {}) if name != "sdtt"]
    series = [
        Series(name, colour, *_curve(record["distillers"][name], measure))
        for name, colour in zip(names, itertools.cycle(_DISTILLERS), strict=False)
    ]
    floor = {n: best[measure] for n, best in record.get("floor", {}).items()}
    if floor:
        series.append(Series("best factorised", "causal", *_curve(floor, measure), marker="square"))
    return series


def _curve(by_steps: Record, measure: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    points = sorted((float(n), m[measure]) for n, m in by_steps.items() if m[measure] > 0)
    return tuple(n for n, _ in points), tuple(value for _, value in points)


def _key(record: Record, series: tuple[Series, ...], measure: str) -> tuple[Series, ...]:
    """The key, which says what lines and markers mean."""
    key: tuple[Series, ...] = (Series("exact optimum", "ink", (), (), marker=""),)
    if any(s.marker == "ring" for s in series):
        key += (Series("trained student", "ink", (), (), line="", marker="ring"),)
    return key + tuple(replace(s, x=(), y=()) for s in _beside(record, measure))


def _alike(record: Record, divergence: str, measure: str) -> bool:
    teacher = record["teacher"]["steps"]
    # By products, since a teacher's samples may be exact.
    return all(
        teacher[n][measure] / _ALIKE <= entry["steps"][n][measure] <= teacher[n][measure] * _ALIKE
        for entry in record["rounds"][divergence]
        for n in teacher
    )


def _finding(record: Record, divergence: str, measure: str) -> str:
    """What the rounds change at as many steps as a sequence has tokens."""
    if _alike(record, divergence, measure):
        return "no round changes anything"
    at = str(record["world"]["length"])
    steps = at if at in record["teacher"]["steps"] else max(record["teacher"]["steps"], key=int)
    before = record["teacher"]["steps"][steps][measure]
    after = record["rounds"][divergence][-1]["steps"][steps][measure]
    return f"{steps} steps: {number(before, 2)} → {number(after, 2)}"
