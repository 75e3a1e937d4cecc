"""Runs the tests of faults and writes docs/guides/faults.md: each fault, its promise and its test.

python -m tools.faults [options of pytest]
"""

import ast
import collections
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sdtt_jax.paths import as_path

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests" / "faults"
PAGE = ROOT / "docs" / "guides" / "faults.md"
NUM_ROWS = 30

HEAD = """# Faults

What can happen to a run, what is promised then, and the test that makes it happen. This page is written by
`python -m tools.faults`, from the markers of the tests and their results. [Reliability](reliability.md) says
what else is promised, and how fast.

| # | fault | promise | test | result |
|---|---|---|---|---|
"""


class Promise(NamedTuple):
    """One `@pytest.mark.fault(row=…, fault=…, promise=…)` of a test."""

    row: int
    file: str
    test: str
    fault: str
    promise: str

    def line(self, result: str) -> str:
        """The promise's line of the table."""
        test = f"`tests/faults/{self.file}::{self.test}`"
        return f"| {self.row} | {self.fault} | {self.promise} | {test} | {result} |\n"


def promises() -> list[Promise]:
    """All promises of the tests, by row; they are read from the source, nothing is imported."""
    listed = []
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    fields = {str(k.arg): ast.literal_eval(k.value) for k in mark.keywords}
                    if set(fields) != {"row", "fault", "promise"}:
                        raise ValueError(f"{path.name}: the marker of {node.name} is incomplete")
                    listed.append(Promise(file=path.name, test=node.name, **fields))
    return sorted(listed)


def missing_rows(tested: Sequence[Promise]) -> list[int]:
    """Rows of the list of faults that no test has."""
    return sorted(set(range(1, NUM_ROWS + 1)) - {promise.row for promise in tested})


def page(tested: Sequence[Promise], outcomes: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """The whole of docs/guides/faults.md, from the promises and `read_outcomes`."""
    return HEAD + "".join(p.line(_result(outcomes.get((p.file, p.test), []))) for p in tested)


def _result(outcomes: Sequence[str]) -> str:
    counts = collections.Counter(outcomes)
    if not counts:
        return "not run"
    if set(counts) == {"passed"}:
        return "passed" if counts["passed"] == 1 else f"passed ({counts['passed']} cases)"
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))


def read_outcomes(report: Path) -> dict[tuple[str, str], list[str]]:
    """File and test -> "passed", "failed" or "skipped" of each of its cases, from pytest's --junitxml."""
    outcomes: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        file = f"{case.attrib['classname'].rpartition('.')[2]}.py"
        ended = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = ("skipped" if ended == ["skipped"] else "failed") if ended else "passed"
        outcomes[file, case.attrib["name"].partition("[")[0]].append(outcome)
    return outcomes


def main(arguments: Sequence[str]) -> int:
    """Runs the tests and writes the page; the exit status is pytest's, or 1 if a row has no test."""
    if {"-h", "--help"} & {*arguments}:
        print(f"{__doc__}\nOptions are those of pytest (python -m pytest --help).")
        return 0
    tested = promises()
    missing = missing_rows(tested)
    if missing:
        sys.stderr.write(f"Error: no test in {TESTS} has row {', '.join(map(str, missing))}.\n")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        report = as_path(folder) / "report.xml"
        # All but the test of the page itself, which is written afterwards.
        options = [f"--ignore={TESTS / 'test_table.py'}", f"--junitxml={report}", *arguments]
        command = [sys.executable, "-m", "pytest", str(TESTS), *options]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if not report.exists():
            return status
        PAGE.write_text(page(tested, read_outcomes(report)), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(tested)} promises, rows 1 to {NUM_ROWS}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
