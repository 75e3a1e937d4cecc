"""The race: quality against latency, of the sampler at every number of steps and of causal models."""

from collections.abc import Mapping, Sequence

from sdtt_jax.reporting.evaluations import Point
from sdtt_jax.reporting.figures import Axis, Panel, Series, Tip
from sdtt_jax.reporting.palette import number, steps_text


def race_panel(
    points: Sequence[Point],
    batch: int,
    colours: Mapping[str, str] | None = None,
    *,
    entropy: bool = False,
) -> Panel | None:
    """Generative perplexity against seconds per batch on log axes; None for fewer than two points.

    Squares are causal models; words at points are numbers of steps.

    Args:
      points: of one batch size.
      batch: that size.
      colours: by model, "accent" for one that has none; default: one of the rounds' colours for each. Causal
        models have a colour of their own.
      entropy: draws the entropy of the texts, in nats, instead.
    """
    if len(points) < 2:
        return None
    groups: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.causal, p.num_steps)):
        groups.setdefault(point.model, []).append(point)
    if colours is None:
        colours = {model: f"r{i}" for i, model in enumerate(groups, start=1)}
    chosen = {
        model: "causal" if group[0].causal else colours.get(model, "accent")
        for model, group in groups.items()
    }
    middle = sum(p.entropy for p in points) / len(points)
    what = "Entropy of the texts, nats" if entropy else "Generative perplexity"
    return Panel(
        title=f"{what}, batch {batch}",
        description=f"{what} against latency, batch {batch}",
        x=Axis("seconds per batch", log=True, num_ticks=4),
        # Differences of a few per cent should look small.
        y=Axis(log=not entropy, reaches=(0.95 * middle, 1.05 * middle) if entropy else ()),
        series=tuple(
            _series(model, chosen[model], group, entropy) for model, group in groups.items()
        ),
        tips=tuple(_tip(point, chosen[point.model]) for point in points),
    )


def _series(model: str, colour: str, group: Sequence[Point], entropy: bool) -> Series:
    return Series(
        model,
        colour,
        x=tuple(p.seconds for p in group),
        y=tuple(p.entropy if entropy else p.gen_ppl for p in group),
        low=() if entropy else tuple(p.low for p in group),
        high=() if entropy else tuple(p.high for p in group),
        line="" if group[0].causal else "line",  # they have no steps to join
        marker="square" if group[0].causal else "dot",
        bars=True,
        notes=tuple(str(p.num_steps) if p.num_steps else "" for p in group),
    )


def _tip(point: Point, colour: str) -> Tip:
    quality = ("", "entropy", number(point.entropy)), ("", "seconds", number(point.seconds))
    rows = ((colour, "perplexity", number(point.gen_ppl)), *quality)
    steps = f", {steps_text(point.num_steps)}" if point.num_steps else ""
    return Tip(point.seconds, point.model + steps, rows)
