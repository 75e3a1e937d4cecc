"""Results side by side at the terminal. Oracle: the cells of the tables, and the files of results."""

import json

import pytest
from rich.console import Console

from experiments.cli import compare as module
from experiments.cli.compare import compare
from experiments.cli.tables import narrow_tables
from sdtt_jax.evaluation.record import FORMAT
from sdtt_jax.reporting.evaluations import read_evaluation, tables

TEXTS = {"kind": "diffusion", "entropy": 2.5432, "entropy_low": 2.5311, "entropy_high": 2.5611}
TIMED = {"kind": "diffusion", "num_steps": 4, "seconds": 0.0213, "tokens_per_second": 12345.6}


def results(path, gen_ppl, judge="runs/demo/judge/final", **judging):
    """A file of results: texts at two numbers of steps, and a timing at two batch sizes."""
    texts = TEXTS | {f"gen_ppl{end}": gen_ppl * by for end, by in ENDS.items()}
    texts |= {"distinct_2": 0.0184123, "self_bleu": 0.87654, "repeated_4gram_rate": 0.00656123}
    inputs = {"judge": judge and {"path": judge, "digest": 8 * judge[:8]}, **judging}
    items = {
        f"generation/unconditional/steps_{steps:04d}": (texts | {"num_steps": steps}, inputs)
        for steps in (4, 8)
    }
    items |= {f"latency/batch_{n}": (TIMED | {"batch": n, "nfe": 4}, {}) for n in (1, 8)}
    content = {
        "format": FORMAT,
        "model": {"path": "runs/demo", "digest": "0" * 64},
        "items": {name: {"inputs": i, "result": result} for name, (result, i) in items.items()},
    }
    path.write_text(json.dumps(content))
    return str(path)


ENDS = {"": 1, "_low": 0.9, "_high": 1.1}


@pytest.mark.parametrize("width", [80, 60])
def test_no_figure_is_lost_in_a_narrow_terminal(tmp_path, capsys, monkeypatch, width):
    """Rich cut "21.9 (21.4–22.5)" to "(21.…"."""
    monkeypatch.setattr(module, "wide_console", lambda _: Console(width=width, markup=False))
    paths = [results(tmp_path / f"{name}.json", ppl) for name, ppl in (("a", 19.3), ("b", 95.7))]
    compare(paths, None)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= width
    found = tables([read_evaluation(path) for path in paths])
    assert {table.title for table in found} == {"Generated texts", "Latency"}
    for cell in {cell for table in found for row in table.rows for cell in row}:
        assert cell in printed


def test_every_part_of_a_table_says_what_its_rows_are(capsys):
    """Timings of one model at one number of steps differ by their batch alone."""
    columns = ("model", "what", "batch", *(f"figure {i}" for i in range(9)))
    rows = [("a/long/path/" * 5, "4 steps", batch, *(9 * ["1.25"])) for batch in ("11", "88")]
    console = Console(width=60)
    parts = narrow_tables(columns, rows, 60)
    for part in parts:
        console.print(part)
        assert [column.header for column in part.columns[:3]] == ["model", "what", "batch"]
    assert [column.header for part in parts for column in part.columns[3:]] == list(columns[3:])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60
    assert len(narrow_tables(columns, rows, 1000)) == 1
