"""launch/demo.sh: where a run goes, and how to go on. Oracle: the command line that a run is given."""

import shutil
import subprocess

import pytest

from tests.launch.test_environment import (  # noqa: F401 - fixtures
    LAUNCH,
    checkout,
    environment,
    installed,
    made,
)


@pytest.fixture
def demo(made):  # noqa: F811
    """A checkout whose `experiments.run` prints its options."""
    shutil.copy(LAUNCH / "demo.sh", made / "launch")
    (made / "experiments").mkdir()
    (made / "experiments" / "run.py").write_text("import sys; print(*sys.argv[1:], sep='\\n')")
    return made


def run(demo, *options, **variables):
    return subprocess.run(
        ["bash", str(demo / "launch" / "demo.sh"), *options],
        check=False, capture_output=True, text=True, cwd=demo.parent, env=environment(**variables),
        stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip


def test_the_directory_that_is_said_is_the_runs(demo):
    here = demo.parent
    for options, variables, where in (
        ([], {}, demo / "runs" / "demo"),
        (["--seed=1"], {"WORKDIR": "of the variable"}, here / "of the variable"),
        (["--workdir=other"], {}, here / "other"),
        ([], {"WORKDIR": "gs://bucket/demo"}, "gs://bucket/demo"),
    ):
        done = run(demo, *options, **variables)
        assert done.returncode == 0, done.stderr
        assert f"[demo] running the demo in {where} (" in done.stdout
        assert f"cd '{demo}' && source '{demo}/.venv/bin/activate'\n" in done.stdout
        assert done.stdout.splitlines()[-1] == f"--workdir={where}"
    refused = run(demo, "--workdir", "other")
    assert refused.returncode == 1
    assert refused.stderr == "[demo] error: write --workdir=DIR, with an equals sign.\n"
