"""The comparison of two checkouts. Oracle: the messages about what cannot be compared."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_without_the_library_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "turns.py", f"--before={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1] == f"Error: {tmp_path} is not a checkout of this repository."
    )


def test_a_mode_that_a_checkout_does_not_have_is_named():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "turns.py", f"--before={ROOT}", "--modes", "gird"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {ROOT}: mode='gird' is unknown (did you mean 'grid'?)")
    assert len(done.stderr.splitlines()) == 1
