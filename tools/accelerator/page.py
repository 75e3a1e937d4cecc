"""Formats a record as a page of Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdtt_jax import markdown
from tools.accelerator import PARTS
from tools.accelerator.bench import text


def page(record: Mapping[str, Any]) -> str:
    """The page of a record: its notes, then a section of tables for each part."""
    parts = record["parts"]
    device = parts.get("machine", {}).get("device", "an accelerator")
    tiny = " Small and medium are sizes for a CPU here, 1 × 32." if record["tiny"] else ""
    lines = [
        f"# Measured on {device}",
        "",
        f"By `{record['command']}`, {record['began']}, on one chip. MFU is the share of the chip's bfloat16 "
        "peak that the unavoidable FLOPs reach (`sdtt_jax.networks.flops`): recomputation does not count, "
        f"and about half of the tokens of a training batch are masked.{tiny}",
    ]
    lines += _listed(note for part in parts.values() for note in part.get("notes", []))
    for name, part in parts.items():
        lines += ["", f"## {PARTS[name].title}"]
        failed = [f"This part failed. {part['error']}"] if "error" in part else []
        lines += _listed([*failed, *part.get("skipped", [])])
        for title, rows in part.get("tables", {}).items():
            lines += ["", f"### {title[0].upper()}{title[1:]}", "", table(rows)]
    return "\n".join(lines) + "\n"


def _is_number(value: Any) -> bool:
    """Whether a cell may be right-aligned: a number, or nothing."""
    return isinstance(value, int | float | None) and not isinstance(value, bool)


def _listed(sentences: Iterable[str]) -> list[str]:
    items = [f"- {' '.join(sentence.split())}" for sentence in sentences]
    return ["", *items] if items else []


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table; its columns are the names in the rows, in the order of their appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    right = [c for c in columns if all(_is_number(row.get(c)) for row in rows)]
    cells = ([text(row[c]) if c in row else "" for c in columns] for row in rows)
    return markdown.table(columns, cells, right)
