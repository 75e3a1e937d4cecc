"""What each round changed: paired change of perplexity, and the share of the reachable gain."""

import math

from markupsafe import Markup

from sdtt_jax.reporting.chart_parts import colour_style, figure
from sdtt_jax.reporting.palette import number, percent
from sdtt_jax.reporting.record import Round, Run
from sdtt_jax.reporting.svg import Scale, linear_ticks, padded, path, tag

SHARES_SHOWN = (-1.0, 1.5)
"""Gain shares between which the axis stays."""


def forest_chart(run: Run, width: float, narrow: bool) -> Markup:
    """Paired change against the first teacher, same steps and keys: one line per round."""
    steps = sorted({k for r in run.rounds for k in r.paired})
    rows = [
        (k, i, r, r.paired[k])
        for k in steps
        for i, r in enumerate(run.rounds, start=1)
        if k in r.paired
    ]
    if not rows:
        return Markup("")
    left, right, top, row, gap = 74.0, width - (12 if narrow else 190), 30.0, 19.0, 12.0
    bounds = [b for *_, p in rows for b in (p.low, p.high)]
    low, high = padded([*bounds, 0.0], log=False, share=0.08)
    x = Scale(low, high, left, right)
    bottom = top + row * len(rows) + gap * (len(steps) - 1)
    percents = linear_ticks(100 * math.expm1(low), 100 * math.expm1(high), 5 if narrow else 7)
    parts = [tag("text", "Perplexity against the first teacher", class_="title", x=0, y=14)]
    for tick in percents:
        at = x(math.log1p(tick / 100))
        text = "0" if tick == 0 else percent(tick / 100, sign=True).replace(".0", "")
        parts.append(
            tag(
                "path",
                class_="zero" if tick == 0 else "grid",
                d=path([(at, top - 4), (at, bottom)]),
            )
        )
        parts.append(tag("text", text, class_="tick", x=at, y=bottom + 18, text_anchor="middle"))
    parts.append(
        tag("text", "← better", class_="axis", x=x(0) - 8, y=bottom + 36, text_anchor="end")
    )
    if right - x(0) > 60:
        parts.append(tag("text", "worse →", class_="axis", x=x(0) + 8, y=bottom + 36))
    hover, previous, at = [], None, top
    for k, index, round_, pair in rows:
        if previous is not None and k != previous:
            at += gap
        centre = at + row / 2
        style = colour_style(f"r{index}")
        if k != previous:
            label = f"{k} steps" if k > 1 else "1 step"
            parts.append(tag("text", label, class_="group", x=0, y=centre + 4))
        parts.append(
            tag(
                "path",
                class_="interval",
                style=style,
                d=path([(x(pair.low), centre), (x(pair.high), centre)]),
            )
        )
        parts.append(
            tag("circle", class_="dot", cx=x(pair.log_ratio), cy=centre, r=4.5, style=style)
        )
        low_, high_ = (percent(math.expm1(v), sign=True) for v in (pair.low, pair.high))
        change = percent(math.expm1(pair.log_ratio), sign=True)
        name = f"round {round_.number}"
        if not narrow:
            parts.append(tag("text", name, class_="tick", x=right + 16, y=centre + 4))
            parts.append(
                tag("text", change, class_="value", x=width, y=centre + 4, text_anchor="end")
            )
        hover.append(
            {
                "at": round(centre, 1),
                "title": f"{name}, {k} steps",
                "rows": [[f"r{index}", "change", change], ["", "95 %", f"{low_} to {high_}"]],
            }
        )
        previous, at = k, at + row
    return figure(
        width,
        bottom + 42,
        parts,
        "Paired change of generative perplexity with 95 % intervals, by round and number of steps",
        hover,
        (left, right),
        "y",
    )


def gain_chart(run: Run, width: float, narrow: bool) -> Markup:
    """Share of the reachable gain that each round took, with the divergences in nats.

    A share outside SHARES_SHOWN, which only a round that learned next to nothing has, is drawn
    up to the edge and written in full.
    """
    rounds = [
        (i, r)
        for i, r in enumerate(run.rounds, start=1)
        if r.gain_share is not None or r.nothing_to_gain
    ]
    if not rounds:
        return Markup("")
    shares = [r.gain_share or 0.0 for _, r in rounds]
    lowest, highest = SHARES_SHOWN
    left, right = 74.0, width - 60
    x = Scale(max(lowest, min(0.0, *shares)), min(highest, max(1.0, *shares)), left, right)
    top, row = 34.0, 54.0
    bottom = top + row * len(rounds)
    parts = [tag("text", "Share of the reachable gain", class_="title", x=0, y=14)]
    for tick in linear_ticks(x.low, x.high, 5):
        at, kind = x(tick), "zero" if tick == 0 else "grid"
        text = f"{100 * tick:.0f}\u202f%".replace("-", "−")
        parts.append(tag("path", class_=kind, d=path([(at, top - 4), (at, bottom)])))
        parts.append(tag("text", text, class_="tick", x=at, y=bottom + 18, text_anchor="middle"))
    hover = []
    for rank, (index, r) in enumerate(rounds):
        y = top + rank * row + 6
        note, rows = _gain_numbers(r, index)
        end = x(max(lowest, min(highest, r.gain_share or 0.0)))
        bar = {"x": min(x(0), end), "width": max(abs(end - x(0)), 1.5), "y": y, "height": 18}
        parts += [
            tag("text", f"round {r.number}", class_="group", x=0, y=y + 13),
            tag("rect", class_="track", x=x(0), y=y, width=x(1) - x(0), height=18, rx=3),
            tag("rect", class_="bar", rx=3, style=colour_style(f"r{index}"), **bar),
            tag("text", rows[0][2], class_="value", x=width, y=y + 13, text_anchor="end"),
            tag("text", note, class_="note", x=0 if narrow else left + 7, y=y + 34),
        ]
        hover.append({"at": round(y + 9, 1), "title": f"round {r.number}", "rows": rows})
    description = "Gain share of each round with the divergence of teacher, student, and the floor"
    return figure(width, bottom + 26, parts, description, hover, (left, right), "y")


def _gain_numbers(found: Round, index: int) -> tuple[str, list[list[str]]]:
    """The note under a bar, and the rows that the pointer shows; the share comes first."""
    share = "at floor" if found.gain_share is None else percent(found.gain_share)
    numbers = {
        "teacher": found.teacher_divergence,
        "student": found.student_divergence,
        "floor": found.floor,
    }
    known = [(name, number(value, 4)) for name, value in numbers.items() if value is not None]
    note = " · ".join(f"{name} {value}" for name, value in known)
    return note, [[f"r{index}", "gain share", share], *(["", *pair] for pair in known)]
