"""The page of Markdown that a record becomes: pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from tools.accelerator.bench import text

TITLES = {
    "machine": "The machine",
    "kernels": "Kernels against the CPU",
    "training": "Training, small size",
    "race": "The race",
    "sampling": "Sampling, small size",
    "profile": "Where the time goes",
    "saving": "Saving and restoring",
    "medium": "Training, medium size",
    "tuning": "Other settings",
}


def page(record: Mapping[str, Any]) -> str:
    """The page of a record: a section for each part, with its sentences and tables."""
    parts = record["parts"]
    device = parts.get("machine", {}).get("device", "an accelerator")
    lines = [
        f"# Measured on {device}",
        "",
        f"By `{record['command']}`, {record['began']}, on one chip. MFU is the share of the chip's bfloat16 "
        "peak that the unavoidable FLOPs make (`sdtt_jax.networks.flops`): recomputation does not count, and "
        "about half of the tokens of a training batch are masked.",
    ]
    for name, part in parts.items():
        lines += ["", f"## {TITLES[name]}"]
        sentences = [*part.get("notes", []), *part.get("skipped", [])]
        if "error" in part:
            sentences.append(f"This part failed. {part['error']}")
        lines += (
            ["", *(f"- {' '.join(sentence.split())}" for sentence in sentences)]
            if sentences
            else []
        )
        for title, rows in part.get("tables", {}).items():
            lines += ["", f"### {title[0].upper()}{title[1:]}", "", *table(rows)]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table; its columns are the names in the rows, in the order of their appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = [all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns]
    lines = [
        f"| {' | '.join(columns)} |",
        f"|{'|'.join(' ---: ' if right else ' --- ' for right in numeric)}|",
    ]
    for row in rows:
        cells = [text(row[c]).replace("|", "\\|") if c in row else "" for c in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
