"""The frontier: perplexity against entropy at several temperatures, a panel for each number of steps."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sdtt_jax.reporting.evaluations import Evaluation, Item, judge_letters, judged_by
from sdtt_jax.reporting.figures import Axis, Panel, Series, Tip
from sdtt_jax.reporting.palette import number, steps_text

# Of decoders, in the order in which these were asked for.
MARKERS = ("dot", "ring", "square", "open")
# A line is left out if it lies so many times farther away than half of the lines reach, and so many nats.
FAR_TIMES, FAR_NATS, FAR_NOTE = 5.0, 0.5, "Too far off to draw (perplexity at entropy)"


def frontier_panels(
    evaluations: Sequence[Evaluation], colours: Mapping[str, str] | None = None
) -> list[Panel]:
    """A line for each model and decoder through its temperatures; real text's entropy is an upright line.

    Where models stand at the entropies of different real texts, each has its line, which names the models.
    Lines so far off that they would squeeze all others into one are left out, and named in the small print.

    Args:
      evaluations: those with items of the suite "frontier" are drawn. Where judges differ, labels name them.
      colours: by model, "accent" for one that has none; default: one of the rounds' colours for each.
    """
    letters, head = judge_letters(evaluations), "frontier/matched"
    found = [
        (evaluation.name, judged_by(evaluation, f"{head}/{name}", letters), item)
        for evaluation in evaluations
        for name, item in evaluation.under(head).items()
        if _points(item)
    ]
    if not found:
        return []
    if colours is None:
        colours = {name: f"r{i}" for i, name in enumerate(dict.fromkeys(n for n, *_ in found), 1)}
    modes = list(dict.fromkeys(item["mode"] for *_, item in found))
    # The only model needs no name where decoders have theirs.
    alone = len(modes) > 1 and len({name + by for name, by, _ in found}) == 1
    numbers = sorted({item["num_steps"] for *_, item in found})
    at = {steps: [each for each in found if each[-1]["num_steps"] == steps] for steps in numbers}
    near = {steps: _near([item for *_, item in at[steps]]) for steps in numbers}
    points = [point for items in near.values() for item in items for point in _points(item)]
    spans = {name: _span(points, name) for name in ("gen_ppl", "entropy")}
    panels = []
    for steps in numbers:
        lines = [
            (_series("" if alone else name + by, item, modes, colours.get(name, "accent")), item)
            for name, by, item in at[steps]
        ]
        far = [f"{s.label} ({_where(item)})" for s, item in lines if item not in near[steps]]
        shown = [(s, item) for s, item in lines if item in near[steps]]
        targets = [(name, i["entropy"]) for name, _, i in at[steps] if i in near[steps]]
        upright = _real_texts(targets, spans["gen_ppl"])
        note = f"{FAR_NOTE}: {'; '.join(far)}" * bool(far)
        panels.append(
            Panel(
                title=f"Perplexity against entropy, {steps_text(steps)}",
                description=f"Generative perplexity against entropy by temperature, {steps_text(steps)}; the "
                f"entropy of real text is a vertical line. {note}".rstrip(". "),
                x=Axis("entropy, nats", reaches=(*spans["entropy"], *(s.x[0] for s in upright))),
                y=Axis(log=True, reaches=spans["gen_ppl"]),
                series=(*(s for s, _ in shown), *upright),
                note=note,
                tips=tuple(_tip(s, point) for s, item in shown for point in _points(item)),
            )
        )
    return panels


def _near(items: Sequence[Item]) -> list[Item]:
    """The items without those too far off, from real text in entropy or from the middle in perplexity."""
    places = [np.array([(p["entropy"], np.log(p["gen_ppl"])) for p in _points(i)]) for i in items]
    middle = np.median(np.concatenate(places)[:, 1])
    away = [abs(x - (i["entropy"], middle)) for i, x in zip(items, places, strict=True)]
    usual = np.quantile([each.max(0) for each in away], 0.5, axis=0, method="lower")
    limits = np.maximum(FAR_NATS, FAR_TIMES * usual)
    found = [i for i, each in zip(items, away, strict=True) if (each.min(0) <= limits).all()]
    return found or list(items)


def _where(item: Item) -> str:
    """The perplexity of an item next to real text's entropy."""
    next_to = min(_points(item), key=lambda point: abs(point["entropy"] - item["entropy"]))
    return f"{number(next_to['gen_ppl'])} at {number(next_to['entropy'])}"


def _span(points: Iterable[Item], field: str) -> tuple[float, float]:
    values = [point[field] for point in points]
    return min(values), max(values)


def _real_texts(targets: Iterable[tuple[str, float]], height: tuple[float, float]) -> list[Series]:
    """An upright line, `height` high, for each entropy of real text, as far as they differ in figures.

    `targets` are the models' names, each with the entropy at which it is measured.
    """
    found: dict[str, tuple[float, list[str]]] = {}
    for name, target in targets:
        _, names = found.setdefault(number(target), (target, []))
        names += [name] if name not in names else []
    return [
        # Its label stands at its upper end.
        Series(
            "real text" if len(found) == 1 else f"real text of {', '.join(names)}",
            "data",
            (target, target),
            height,
            line="reference",
            marker="",
        )
        for target, names in found.values()
    ]


def _series(name: str, item: Item, modes: Sequence[str], colour: str) -> Series:
    points = _points(item)
    x, y = (tuple(point[field] for point in points) for field in ("entropy", "gen_ppl"))
    # One text has no interval.
    low, high = (
        tuple(point[f"gen_ppl_{end}"] or point["gen_ppl"] for point in points)
        for end in ("low", "high")
    )
    place = modes.index(item["mode"])
    label = f"{name}, {item['mode']}" if name and len(modes) > 1 else name or item["mode"]
    line, marker = "line" if place == 0 else "reference", MARKERS[place % len(MARKERS)]
    return Series(label, colour, x, y, low, high, line=line, marker=marker, bars=True)


def _points(item: Item) -> list[Item]:
    """The points that have a perplexity, by entropy."""
    known = (point for point in item["points"] if point["gen_ppl"] is not None)
    return sorted(known, key=lambda point: point["entropy"])


def _tip(series: Series, point: Item) -> Tip:
    perplexity = series.colour, "perplexity", number(point["gen_ppl"])
    entropy = "", "entropy", number(point["entropy"])
    title = f"{series.label}, temperature {point['temperature']:g}"
    return Tip(point["entropy"], title, (perplexity, entropy))
