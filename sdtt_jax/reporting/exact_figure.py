"""The figure of the exact laboratory: what each round does to the samples, computed and trained.

One panel per divergence: KL(samples ‖ language) against the number of sampling steps. Lines are
exact optima, rings are trained students. Drawn from the record that `experiments.exact` writes.
"""

from collections.abc import Mapping
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
_ALIKE = 1.02  # rounds within this factor of the teacher's KL, everywhere, read as no change

Record = Mapping[str, Any]


def exact_panels(record: Record) -> list[Panel]:
    """One panel for each divergence in `record["rounds"]`, on common axes.

    Args:
      record: what `sdtt_jax.laboratory.record` makes.
    """
    panels = [_series(record, divergence) for divergence in record["rounds"]]
    values = tuple(v for series in panels for s in series for v in s.y)
    steps = [int(n) for n in record["teacher"]["steps"]]
    return [
        Panel(
            title=f"{divergence}   {NAMES[divergence]}",
            description=f"KL of samples from the language by number of steps, rounds of {divergence}",
            note=f"KL(samples ‖ language), nats   ·   {_finding(record, divergence)}",
            x=Axis("sampling steps", log=True, ticks=tuple(n for n in steps if n & (n - 1) == 0)),
            y=Axis(log=True, reaches=values),
            series=series,
            key=() if index else _key(series),
        )
        for index, (divergence, series) in enumerate(zip(record["rounds"], panels, strict=True))
    ]


def _series(record: Record, divergence: str) -> tuple[Series, ...]:
    rounds = record["rounds"][divergence]
    alike = _alike(record, divergence)
    lines = [Series("teacher", "teacher", *_curve(record["teacher"]), line="heavy", marker="")]
    rings = []
    for number_of, entry in enumerate(rounds, start=1):
        last = number_of == len(rounds)
        label = ("all rounds" if last else "") if alike else f"round {number_of}"
        lines.append(Series(label, f"r{number_of}", *_curve(entry), marker=""))
        if "trained" in entry:
            x, y = _curve(entry["trained"])
            rings.append(Series("", f"r{number_of}", x, y, line="", marker="ring"))
    return (*lines, *rings)


def _curve(entry: Record) -> tuple[tuple[float, ...], tuple[float, ...]]:
    known = {int(n): values["kl"] for n, values in entry["steps"].items() if values["kl"] > 0}
    order = sorted(known)
    return tuple(float(n) for n in order), tuple(known[n] for n in order)


def _key(series: tuple[Series, ...]) -> tuple[Series, ...]:
    """What a line and a ring are."""
    key: tuple[Series, ...] = (Series("exact optimum", "ink", (), (), marker=""),)
    if any(s.marker for s in series):
        key += (Series("trained student", "ink", (), (), line="", marker="ring"),)
    return key


def _alike(record: Record, divergence: str) -> bool:
    teacher = record["teacher"]["steps"]
    return all(
        1 / _ALIKE < entry["steps"][n]["kl"] / teacher[n]["kl"] < _ALIKE
        for entry in record["rounds"][divergence]
        for n in teacher
    )


def _finding(record: Record, divergence: str) -> str:
    """What the rounds change at as many steps as a sequence has tokens."""
    if _alike(record, divergence):
        return "no round changes anything"
    at = str(record["world"]["length"])
    steps = at if at in record["teacher"]["steps"] else max(record["teacher"]["steps"], key=int)
    before = record["teacher"]["steps"][steps]["kl"]
    after = record["rounds"][divergence][-1]["steps"][steps]["kl"]
    return f"{steps} steps: {number(before, 2)} → {number(after, 2)}"
