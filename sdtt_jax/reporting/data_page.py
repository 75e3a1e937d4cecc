"""The page of a prepared corpus: what `sdtt_jax.data.inspection` found, in the report's style."""

from typing import Any

from markupsafe import Markup

from sdtt_jax.data.inspection import most_frequent, summary, taken_away
from sdtt_jax.reporting.figures import Axis, Panel, Series
from sdtt_jax.reporting.report import NARROW, WIDE, page, panel_figure


def render_data(found: dict[str, Any], name: str) -> str:
    """The page as text, from what `inspect_data` found in the folder of that name."""
    return page(
        "data.html",
        name=name,
        found=found,
        summary=summary(found),
        taken_away=taken_away(found),
        frequent=most_frequent(found),
        lengths=_lengths(found),
    )


def _lengths(found: dict[str, Any]) -> Markup:
    """The share of documents of each length, both splits; empty without a whole document."""
    series = []
    for split, colour in (("train", "teacher"), ("validation", "data")):
        lengths = found["splits"][split]["lengths"]
        total = sum(lengths.values())
        if total:
            x = tuple(float(length) for length in lengths)
            series.append(Series(split, colour, x, tuple(n / total for n in lengths.values())))
    if not series:
        return Markup("")
    panel = Panel(
        title="Documents by their length",
        description="share of the documents by their number of tokens, up to each power of two",
        x=Axis("tokens in a document, up to", log=True),
        y=Axis(reaches=(0.0,)),
        series=tuple(series),
        note="share of the documents that were looked at",
    )
    return panel_figure(panel, (WIDE, 340), (NARROW, 300))
