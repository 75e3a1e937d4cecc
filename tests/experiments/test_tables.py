"""Tables for the terminal. Oracle: the cells that they are made of."""

import io
import sys

import pytest
from rich.console import Console

from experiments.cli.app import wide_console
from experiments.cli.tables import rich_table


def test_texts_that_tables_show_are_no_markup(capsys):
    wide_console().print(rich_table(["a"], [["[red]'[/b]' :cat:"]], title="b[/i]"))
    assert "[red]'[/b]' :cat:" in capsys.readouterr().out


def test_numbers_stand_at_the_right_of_their_column_and_names_at_the_left(capsys):
    wide_console().print(rich_table(["what", "ms"], [["a", "12345"], ["b", "1"]], right=["ms"]))
    lines = [line.strip(" │") for line in capsys.readouterr().out.splitlines()]
    assert [line.split() for line in lines[3:5]] == [["a", "│", "12345"], ["b", "│", "1"]]
    assert len(lines[3]) == len(lines[4])


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_figure_of_a_table_is_broken_on_a_narrow_terminal(width, capsys):
    """13.40 was 13.4 over 0 in the benchmark's tables. Oracle: the cells, and the width of the terminal."""
    columns = ("", "of", *(f"figure {i}" for i in range(7)))
    figures = [f"{n}2.{n}4 (1{n}.9–17.9)" for n in range(7)]
    rows = [(n, of, *figures) for n, of in (("1", "teacher"), ("", "round 1"), ("2", "teacher"))]
    style = {"title": "the title", "caption": "the caption"}
    Console(width=width).print(rich_table(columns, rows, columns[2:], **style))
    printed = capsys.readouterr().out
    assert all(cell in printed for row in rows for cell in row)
    assert max(map(len, printed.splitlines())) <= width
    assert (printed.count("the title"), printed.count("the caption")) == (1, 1)
    assert printed.index("the title") < printed.index("figure 0")
    assert printed.index("figure 6") < printed.index("the caption")


def test_every_part_of_a_table_says_what_its_rows_are(capsys):
    """Timings of one model at one number of steps differ by their batch alone."""
    columns = ("model", "what", "batch", *(f"figure {i}" for i in range(9)))
    rows = [("a/long/path/" * 5, "4 steps", batch, *(9 * ["1.25"])) for batch in ("11", "88")]
    Console(width=60).print(rich_table(columns, rows))
    printed = capsys.readouterr().out.splitlines()
    heads = [[cell.strip() for cell in line.split("┃")[1:-1]] for line in printed if "fig" in line]
    assert len(heads) > 1
    assert all(head[:3] == ["model", "what", "batch"] for head in heads)
    assert [name for head in heads for name in head[3:]] == list(columns[3:])
    assert max(map(len, printed)) <= 60
    Console(width=1000).print(rich_table(columns, rows))
    assert capsys.readouterr().out.count("model") == 1


def test_a_table_in_a_pipe_that_is_closed_ends_as_what_is_printed_does(monkeypatch):
    """`data inspect | head -1` had status 1. Oracle: the error of `print`, of which commands make 141."""

    class Closed(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        wide_console().print(rich_table(["a"], [["b"]]))
