"""Training curves: the loss of one stage or round by step."""

import itertools
import math
from collections.abc import Sequence

from markupsafe import Markup

from sdtt_jax.reporting.chart_parts import colour_style, figure, y_axis
from sdtt_jax.reporting.palette import number
from sdtt_jax.reporting.record import LossCurve
from sdtt_jax.reporting.svg import Scale, linear_ticks, log_ticks, padded, path, tag


def loss_chart(curve: LossCurve, title: str, colour: str, width: float, height: float) -> Markup:
    """Training loss on a log axis: the raw values pale, their running mean over them."""
    pairs = [(s, v) for s, v in zip(curve.steps, curve.losses, strict=True) if v > 0]
    if not pairs:
        return Markup("")
    smooth = running_mean([v for _, v in pairs])
    stride = math.ceil(len(pairs) / 200)
    keep = sorted({*range(0, len(pairs), stride), len(pairs) - 1})
    pairs, smooth = [pairs[i] for i in keep], [smooth[i] for i in keep]
    left, right, top, bottom = 40.0, width - 10, 30.0, height - 22
    low, high = padded([v for _, v in pairs], log=True)
    x = Scale(0, max(pairs[-1][0], 1), left, right)
    y = Scale(low, high, bottom, top, log=True)
    style = colour_style(colour)
    parts = [tag("text", title, class_="title", x=0, y=14)]
    parts.append(
        tag(
            "text",
            number(smooth[-1]),
            class_="value",
            x=right,
            y=14,
            text_anchor="end",
            style=style,
        )
    )
    parts += y_axis(log_ticks(low, high, 3), y, left, right)
    for tick in linear_ticks(0, x.high, 3):
        parts.append(
            tag(
                "text",
                f"{tick:,.0f}".replace(",", "\u202f"),
                class_="tick",
                x=x(tick),
                y=bottom + 17,
                text_anchor="middle",
            )
        )
    raw = [(x(s), y(v)) for s, v in pairs]
    mean = [(x(s), y(v)) for (s, _), v in zip(pairs, smooth, strict=True)]
    parts.append(tag("path", class_="raw", d=path(raw), style=style))
    parts.append(tag("path", class_="line", d=path(mean), style=style))
    hover = [
        {
            "at": round(x(s), 1),
            "title": f"step {s}",
            "rows": [[colour, "mean", number(m, 4)], ["", "raw", number(v, 4)]],
        }
        for (s, v), m in zip(pairs, smooth, strict=True)
    ]
    return figure(width, height, parts, f"Training loss: {title}", hover, (top, bottom))


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a twentieth of the values, cut short at both ends.

    Centred, because a mean over the past alone lies above a falling curve.
    """
    reach = max(2, len(values) // 40)
    sums = [0.0, *itertools.accumulate(values)]
    means = []
    for index in range(len(values)):
        first, end = max(0, index - reach), min(len(values), index + reach + 1)
        means.append((sums[end] - sums[first]) / (end - first))
    return means
