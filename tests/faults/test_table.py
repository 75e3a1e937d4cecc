"""The list of faults is whole, and docs/guides/faults.md says what the tests say."""

import re

import pytest

from tools.faults import HEAD, PAGE, main, missing_rows, page, promises

PROMISES = promises()


def test_every_row_has_a_test():
    assert missing_rows(PROMISES) == []


@pytest.mark.parametrize("test", sorted({(p.file, p.test) for p in PROMISES}), ids="::".join)
def test_a_test_is_named_after_its_row(test):
    rows = {p.row for p in PROMISES if (p.file, p.test) == test}
    assert int(re.match(r"test_row_(\d\d)_", test[1])[1]) in rows


def test_no_two_promises_are_the_same():
    texts = [(p.row, p.fault) for p in PROMISES]
    assert len(set(texts)) == len(texts)


def test_the_page_says_what_the_tests_say():
    """All but the last column; `python -m tools.faults` makes the page anew."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(HEAD)

    def without_results(content):
        return [line.rsplit(" | ", 1)[0] for line in content[len(HEAD) :].splitlines()]

    assert without_results(text) == without_results(page(PROMISES, {}))


def test_help_is_of_the_tool_and_runs_nothing(capsys):
    """It used to be pytest's."""
    assert main(["--help"]) == 0
    assert "writes docs/guides/faults.md" in capsys.readouterr().out


def test_everything_on_the_page_passed():
    lines = PAGE.read_text(encoding="utf-8")[len(HEAD) :].splitlines()
    assert all(re.search(r"\| passed( \(\d+ cases\))? \|$", line) for line in lines), lines
