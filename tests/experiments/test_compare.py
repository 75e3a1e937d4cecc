"""Results side by side at the terminal. Oracle: the cells of the tables, and the files of results."""

import json

import pytest
from rich.console import Console

from experiments.cli import compare as module
from experiments.cli.compare import compare, named_files
from sdtt_jax.errors import ConfigError, DataError
from sdtt_jax.evaluation.record import FORMAT
from sdtt_jax.reporting.evaluations import race, read_evaluation, tables

TEXTS = {"kind": "diffusion", "entropy": 2.5432, "entropy_low": 2.5311, "entropy_high": 2.5611}
TIMED = {"kind": "diffusion", "num_steps": 4, "seconds": 0.0213, "tokens_per_second": 12345.6}


def results(path, gen_ppl, judge="runs/demo/judge/final", digest="06e99ef3e07c", **judging):
    """A file of results: texts at two numbers of steps, and a timing at two batch sizes."""
    texts = TEXTS | {f"gen_ppl{end}": gen_ppl * by for end, by in ENDS.items()}
    texts |= {"distinct_2": 0.0184123, "self_bleu": 0.87654, "repeated_4gram_rate": 0.00656123}
    inputs = {"judge": judge and {"path": judge, "digest": digest}, **judging}
    items = {
        f"generation/unconditional/steps_{steps:04d}": (texts | {"num_steps": steps}, inputs)
        for steps in (4, 8)
    }
    items |= {
        f"latency/steps_0004_batch_{n:03d}": (TIMED | {"batch": n, "nfe": 4}, {}) for n in (1, 8)
    }
    content = {
        "format": FORMAT,
        "model": {"path": "runs/demo", "digest": "0" * 64},
        "items": {name: {"inputs": i, "result": result} for name, (result, i) in items.items()},
    }
    path.write_text(json.dumps(content))
    return str(path)


ENDS = {"": 1, "_low": 0.9, "_high": 1.1}


def test_a_comma_is_between_files_unless_a_file_has_it_in_its_name(tmp_path):
    named = f"{tmp_path}/a,b.json"
    assert named_files(named) == [f"{tmp_path}/a", "b.json"]
    (tmp_path / "a,b.json").write_text("{}")
    assert named_files(named) == [named]


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


def test_the_path_of_a_judge_stays_in_one_line(tmp_path, capsys):
    """It was broken after 150 letters, in pipes too. Oracle: the path that was given."""
    judge = "/a/path/of/a/judge" * 12
    compare([results(tmp_path / "a.json", 19.3, judge)], None)
    assert judge in capsys.readouterr().out


def test_perplexities_of_different_judges_are_not_set_side_by_side_unmarked(tmp_path, capsys):
    """Oracle: the judges in the files. One judge is named below the table; two have a column as well."""
    one, other, cut = (tmp_path / f"{name}.json" for name in ("one", "other", "cut"))
    same = [results(one, 19.3), results(other, 20.1, "moved/judge/final")]
    [texts, _] = tables([read_evaluation(path) for path in same])
    assert "judge" not in texts.columns
    assert texts.note == "judge: runs/demo/judge/final (06e99ef3)"
    compare(same, None)
    assert "judge: runs/demo/judge/final" in capsys.readouterr().out

    results(other, 95.7, "smollm2", digest="5f2a11bb0c9d")
    results(cut, 18.1, ends="cut", first_token="scored")
    found = [read_evaluation(path) for path in (one, other, cut)]
    texts, latency = tables(found)
    assert texts.columns[:3] == ("model", "texts", "judge")
    assert [row[:3] for row in texts.rows[::2]] == [
        ("one", "4 steps", "a"),
        ("other", "4 steps", "b"),
        ("cut", "4 steps", "c"),
    ]
    assert texts.note == (
        "Perplexities of different judges cannot be compared. judge a: runs/demo/judge/final (06e99ef3); "
        "judge b: smollm2 (5f2a11bb); judge c: runs/demo/judge/final (06e99ef3, first_token=scored, ends=cut)"
    )
    assert "judge" not in latency.columns
    assert latency.note == ""
    points = race(found, 1)
    assert [p.model for p in points] == ["one, judge a", "other, judge b", "cut, judge c"]
    compare([str(one), str(other)], str(tmp_path / "side"))
    assert "judge b: smollm2" in (tmp_path / "side" / "comparison.md").read_text()
    assert "cannot be compared" in capsys.readouterr().out


def test_a_file_is_compared_once_however_it_is_named(tmp_path, monkeypatch):
    file = results(tmp_path / "a.json", 19.3)
    monkeypatch.chdir(tmp_path)
    for other in ("a.json", "./a.json", f"../{tmp_path.name}/a.json"):
        with pytest.raises(ConfigError, match="--compare names a file twice"):
            compare([file, other], None)


def test_a_loop_of_links_cannot_be_read(tmp_path):
    """It was a traceback: `Path.resolve` raises a RuntimeError."""
    (tmp_path / "a.json").symlink_to("b.json")
    (tmp_path / "b.json").symlink_to("a.json")
    with pytest.raises(DataError, match=r"a.json cannot be read: Too many levels of symbolic"):
        compare([str(tmp_path / "a.json")], None)
