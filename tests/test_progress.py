"""What a run prints, on a terminal and elsewhere."""

import io
import itertools
import re
import time

import pytest

from sdtt_jax.progress import BarProgress, LineProgress, make_progress, track_text, tracked


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _able_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


def test_plain_lines_where_the_terminal_cannot_move_its_cursor(monkeypatch):
    """A bar showed nothing until its end there. Oracle: a line for each of the steps, as in a log."""
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with make_progress("teacher", 2, stream=stream, interval=0.0) as progress:
        for step in (1, 2):
            progress.update(step, {"loss": 2.0})
            assert len(stream.getvalue().splitlines()) == step


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with make_progress("teacher", 10, stream=stream, interval=0.0) as progress:
        assert isinstance(progress, LineProgress)
        progress.update(0)
        progress.update(1, {"loss": 2.0, "tokens_per_second": 1234.5, "data_wait": 0.0125})
        progress.update(2)
    [line] = stream.getvalue().splitlines()
    shown = "teacher: step 1/10, loss 2.0000, 1,234 tokens/s, 12.5 ms wait for data, 0:00 elapsed, "
    assert line.startswith(shown)
    assert line.endswith(" left")


def test_a_small_loss_is_not_shown_as_none():
    """Divergences of a round may be far below 0.0001, and were 0.0000. Oracle: the loss that was given."""
    stream = io.StringIO()
    with make_progress("distill", 1, stream=stream) as progress:
        progress.update(1, {"loss": 1.23456e-05})
    assert "loss 1.2346e-05," in stream.getvalue()


def test_lines_keep_their_distance_but_the_last_step_is_always_there():
    stream = io.StringIO()
    with make_progress("judge", 5, stream=stream, interval=1000.0) as progress:
        for step in range(1, 6):
            progress.update(step, {"loss": float(step)})
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        "judge: step 1/5",
        "judge: step 5/5",
    ]


def test_a_bar_on_a_terminal():
    stream = Terminal()
    with make_progress("distill, round 2", 4, stream=stream) as progress:
        assert isinstance(progress, BarProgress)
        progress.update(4, {"loss": 1.5, "tokens_per_second": 1000.0})
    shown = stream.getvalue()
    assert "distill, round 2" in shown
    assert "4/4" in shown
    assert "loss 1.5000, 1,000 tokens/s" in shown


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_narrow_terminal_shows_steps_and_times_whole_in_one_line(width, monkeypatch):
    """Oracle: what the line must hold, written out; the rest may be cut."""
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    with make_progress("coupled_idlm, round 1", 200, stream=stream) as progress:
        values = {"loss": 2.3456, "tokens_per_second": 15948.0, "data_wait": 0.0001}
        progress.update(120, values)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).rstrip("\n")
    last = re.split(r"[\r\n]", shown)[-1]
    assert len(last) <= width
    assert " 120/200 " in last
    assert re.search(r"\d:\d\d:\d\d left (-:--:--|\d:\d\d:\d\d)$", last)
    assert ("loss 2.3456" in last) == (width >= 80)


@pytest.mark.parametrize("width", [40, 50, 60, 80])
def test_on_a_narrow_terminal_titles_keep_the_ends_by_which_they_differ(width, monkeypatch):
    """Rounds and temperatures were cut off below 90 columns. Oracle: the titles' own last letters."""
    monkeypatch.setenv("COLUMNS", str(width))
    for title in ("coupled_idlm, round 1", "entropy-bounded, 16 steps, temperature 0.9"):
        stream = Terminal()
        with make_progress(title, 2000, stream=stream) as progress:
            progress.update(1200, {"tokens_per_second": 15948.0})
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).rstrip("\n")
        last = re.split(r"[\r\n]", shown)[-1]
        assert len(last) <= width
        assert re.match(f"{title[:3]}.*{re.escape(title[-3:])} .*1200/2000 ", last)
        assert (title in last) == (len(title) <= width - 37)


def test_the_time_left_does_not_count_the_compilation(monkeypatch):
    """The first step takes 100 s, the others 1 s each. Oracle: 16 steps are left after the fourth."""
    times = iter([0.0, 100.0, 101.0, 102.0, 103.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    stream = io.StringIO()
    with make_progress("teacher", 20, stream=stream) as progress:
        for step in range(5):
            progress.update(step, {"loss": 1.0} if step == 4 else None)
    [line] = stream.getvalue().splitlines()
    assert line == "teacher: step 4/20, loss 1.0000, 1:43 elapsed, 0:16 left"


def test_what_was_done_before_counts_as_done_and_not_for_the_rate(monkeypatch):
    clock = itertools.count()  # a second passes whenever somebody looks
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    assert list(tracked("bounds", "ab", tokens=60, finished=6, stream=stream)) == ["a", "b"]
    first, second = stream.getvalue().splitlines()
    assert first.startswith("bounds: step 7/8, 30 tokens/s, ")  # 60 tokens in 2 s
    assert second.startswith("bounds: step 8/8, 30 tokens/s, ")  # 120 tokens in 4 s


def test_where_all_was_done_before_nothing_is_shown():
    stream = io.StringIO()
    assert list(tracked("bounds", [], tokens=60, finished=8, stream=stream)) == []
    assert stream.getvalue() == ""


def test_a_long_pass_over_text_says_how_far_it_is():
    stream = io.StringIO()
    texts = ["a" * 500_000] * 4
    told = track_text(texts, "tokenising", 2_000_000, stream=stream, interval=0.0)
    assert list(told) == texts
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("tokenising: 1 of 2 MB, ")
    assert " MB/s, 0:00 elapsed, 0:00 left" in lines[1]


def test_a_short_pass_over_text_says_nothing():
    stream = io.StringIO()
    assert list(track_text(["a", "b"], "reading", 0, stream=stream)) == ["a", "b"]
    assert stream.getvalue() == ""
