"""launch/environment.sh: clear words for what is missing, and environments that survive anything.

The oracle is a checkout of one empty package, whose build backend is in the checkout itself, so
that a real virtual environment and a real pip are used without a network.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from tests.sharing import once

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"

JOB = """\
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment job "$@"
"$PYTHON_IN_VENV" -c 'import sdtt_jax; print("imported from", sdtt_jax.__file__)'
"""

# Builds an editable wheel. It waits for as long as the file `wait` lies in the checkout.
BACKEND = """\
import os, pathlib, time, zipfile
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    while os.path.exists("wait"):
        time.sleep(0.05)
    name = "sdtt_jax-0.1.0-py3-none-any.whl"
    info = "sdtt_jax-0.1.0.dist-info"
    files = {
        "sdtt_jax.pth": os.getcwd() + "\\n",
        f"{info}/METADATA":
            "Metadata-Version: 2.1\\nName: sdtt_jax\\nVersion: 0.1.0\\nProvides-Extra: test\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    record = "".join(f"{file},,\\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(pathlib.Path(wheel_directory, name), "w") as wheel:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(file, text)
    return name
"""


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """A repository with one empty package, in a folder with a space in its name."""
    return make_checkout(tmp_path)


def make_checkout(folder: pathlib.Path) -> pathlib.Path:
    root = folder / "the checkout"
    (root / "launch").mkdir(parents=True)
    (root / "sdtt_jax").mkdir()
    shutil.copy(LAUNCH / "environment.sh", root / "launch")
    (root / "launch" / "job.sh").write_text(JOB)
    (root / "sdtt_jax" / "__init__.py").touch()
    (root / "constraints.txt").touch()
    (root / "setup.cfg").touch()
    (root / "backend.py").write_text(BACKEND)
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    return root


def environment(**variables: str) -> dict[str, str]:
    names = ("VENV", "CONSTRAINTS")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return {**clean, "PYTHON": sys.executable, "INSTALLER": "pip", **variables}


def run(checkout: pathlib.Path, *extra: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the job from another directory, with no standard input."""
    return subprocess.run(
        ["bash", str(checkout / "launch" / "job.sh"), *extra],
        check=False,
        capture_output=True,
        text=True,
        cwd=checkout.parent,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


class Installed(NamedTuple):
    """A checkout whose job ran once, what that said, and a copy of its environment."""

    checkout: pathlib.Path
    status: int
    said: str
    venv: pathlib.Path


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Making an environment takes 5 s, so there is one; tests that begin after that copy it."""

    def make(folder: pathlib.Path) -> tuple[int, str]:
        root = make_checkout(folder)
        first = run(root, PYTHONDONTWRITEBYTECODE="1")
        shutil.copytree(root / ".venv", folder / "venv", symlinks=True)
        return first.returncode, first.stdout + first.stderr

    folder, (status, said) = once(tmp_path_factory, "installed", make)
    return Installed(folder / "the checkout", status, said, folder / "venv")


@pytest.fixture
def made(checkout: pathlib.Path, installed: Installed) -> pathlib.Path:
    """A checkout with an environment in which another checkout's package is installed."""
    venv = checkout / ".venv"
    shutil.copytree(
        installed.venv, venv, symlinks=True, ignore=shutil.ignore_patterns("install.log")
    )
    stamp = venv / ".python"
    stamp.write_text(stamp.read_text().replace(str(installed.checkout), str(checkout)))
    return checkout


def fake_python(path: pathlib.Path, body: str) -> str:
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return str(path)


def test_a_python_that_is_missing(checkout):
    result = run(checkout, PYTHON="python-nowhere")
    assert result.returncode == 1
    assert result.stderr == (
        "[job] error: no 'python-nowhere' was found. "
        "Install Python 3.11 or newer, or set PYTHON=/path/to/python3.\n"
    )


def test_a_folder_that_cd_prints_is_no_part_of_the_checkouts_path(checkout):
    """With CDPATH exported, `cd` searches there first: an empty folder of that name is the wrong one."""
    elsewhere = checkout.parent / "elsewhere"
    for folder in (elsewhere / "launch", checkout.parent / "launch"):
        folder.mkdir(parents=True)
    for cdpath in (".", str(elsewhere)):
        result = subprocess.run(
            ["bash", "launch/job.sh"],
            check=False,
            capture_output=True,
            text=True,
            cwd=checkout,
            env=environment(PYTHON="python-nowhere", CDPATH=cdpath),
            stdin=subprocess.DEVNULL,
        )
        assert "no 'python-nowhere' was found" in result.stderr


def test_a_python_that_says_something_first_is_none_that_is_too_old(checkout, tmp_path):
    """PYTHONWARNINGS=foo makes every Python write a line to stderr; a wrapper may write one to stdout."""
    body = (
        'echo "a note"; echo "a warning" >&2; case "$*" in *version_info*) echo "1 3.11.2 /usr" ;;'
    )
    chatty = fake_python(tmp_path / "chatty", body + " *) exit 1 ;; esac")
    result = run(checkout, PYTHON=chatty)
    assert f"'{chatty}' cannot make virtual environments" in result.stderr
    broken = fake_python(tmp_path / "broken", 'echo "no library" >&2; exit 1')
    assert f"'{broken}' does not run: no library" in run(checkout, PYTHON=broken).stderr


def test_a_python_that_is_too_old(checkout, tmp_path):
    old = fake_python(tmp_path / "old", 'echo "0 3.9.2 /usr"')
    result = run(checkout, PYTHON=old)
    assert result.returncode == 1
    assert f"'{old}' is Python 3.9.2; 3.11 or newer is needed." in result.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_cannot_make_environments(checkout, tmp_path):
    """Debian's python3 without python3-venv: neither ensurepip, nor pip, nor virtualenv."""
    bare = fake_python(
        tmp_path / "bare", 'case "$*" in *version_info*) echo "1 3.11.2 /usr" ;; *) exit 1 ;; esac'
    )
    result = run(checkout, PYTHON=bare)
    assert result.returncode == 1
    assert "On Debian or Ubuntu: apt-get install python3-venv" in result.stderr


def test_a_folder_that_is_no_environment_is_left_alone(checkout, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("ten years")
    result = run(checkout, VENV="thesis")
    assert result.returncode == 1
    assert f"VENV={tmp_path / 'thesis'} exists and is not a virtual environment" in result.stderr
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter"]


def test_constraints_that_are_missing(checkout):
    result = run(checkout, CONSTRAINTS="nowhere.txt")
    assert result.returncode == 1
    assert f"CONSTRAINTS: there is no file {checkout.parent / 'nowhere.txt'}." in result.stderr


def test_an_installer_that_is_unknown(checkout):
    """Any word but uv used to mean pip, so a slip of the pen went unnoticed."""
    result = run(checkout, INSTALLER="conda")
    assert result.returncode == 1
    assert result.stderr == "[job] error: INSTALLER=conda is unknown; choose one of uv, pip.\n"
    assert not (checkout / ".venv").exists()


@pytest.mark.slow
def test_installs_once_and_again_when_the_requirements_change(installed):
    checkout = installed.checkout
    assert installed.status == 0, installed.said
    assert "[job] installing packages" in installed.said
    assert f"imported from {checkout}" in installed.said
    compiled = list((checkout / "sdtt_jax" / "__pycache__").glob("__init__.*.pyc"))
    assert compiled, "modules stay compiled from one program to the next"

    again = run(checkout)
    assert again.returncode == 0, again.stderr
    assert "is ready" in again.stdout
    assert "installing" not in again.stdout

    with_extra = run(checkout, "test")
    assert "installing packages" in with_extra.stdout
    assert "making" not in with_extra.stdout
    assert "is ready" in run(checkout).stdout

    (checkout / "setup.cfg").write_text("# changed\n")
    changed = run(checkout)
    assert "installing packages" in changed.stdout
    assert "making" not in changed.stdout


@pytest.mark.slow
def test_where_uv_cannot_be_had_pip_installs(made):
    result = run(made, INSTALLER="uv", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert result.returncode == 0, result.stderr
    assert "uv could not install the packages; trying pip" in result.stdout
    assert f"imported from {made}" in result.stdout


@pytest.mark.slow
def test_uv_is_asked_for_what_pip_would_install(made):
    """A uv that stands in for the real one writes down its arguments, and then cannot install."""
    pip = made / "pip"
    pip.mkdir()
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text(
        "import os, pathlib, stat, sys\n"
        "if sys.argv[1:] == ['config', 'get', 'global.index-url']:\n"
        "    print('https://mirror.example/simple')\n"
        "elif sys.argv[1] == 'install':\n"
        "    uv = pathlib.Path(sys.prefix, 'bin', 'uv')\n"
        '    uv.write_text(\'#!/bin/sh\\nprintf "%s|" "$@" > asked\\nexit 1\\n\')\n'
        "    uv.chmod(0o755)\n"
    )
    run(made, "test", INSTALLER="uv")
    venv = made / ".venv"
    assert (made / "asked").read_text().split("|")[:-1] == [
        "pip", "install", "--python", str(venv / "bin" / "python"), "--no-progress", "--system-certs",
        "--default-index", "https://mirror.example/simple",
        "--constraint", str(made / "constraints.txt"), "--editable", f"{made}[test]",
    ]  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_installation_is_made_anew(made, installed):
    """Ctrl-C while pip builds; the next call repairs it without being told.

    To make the environment anew, a Python that stands in for the real one copies another.
    """
    (made / "wait").touch()
    log = made / ".venv" / "install.log"
    # As from a terminal: in the background of a script, SIGINT is ignored, and a shell cannot take back what
    # was ignored when it started.
    with_sigint = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", with_sigint, "bash", str(made / "launch" / "job.sh")],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (log.exists() and "Preparing editable metadata" in log.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) != 0

    (made / "wait").unlink()
    copying = fake_python(
        made.parent / "copying",
        f'case "$*" in "-m venv "*) cp -a "{installed.venv}/." "$3" ;;'
        f' *) exec "{sys.executable}" "$@" ;; esac',
    )
    (made / ".venv" / "half").touch()
    result = run(made, PYTHON=copying)
    assert result.returncode == 0, result.stderr
    assert not (made / ".venv" / "half").exists()
    assert "did not finish: making it anew" in result.stdout
    assert f"imported from {made}" in result.stdout
    assert "is ready" in run(made).stdout


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~/a b", "/h o/a b"),
        ("~", "/h o"),
        ("/x/~", "/x/~"),
        ("~x", "{here}/~x"),
        ("a", "{here}/a"),
    ],
)
def test_a_quoted_tilde_is_the_home(tmp_path, given, expected):
    program = f'source "{LAUNCH}/environment.sh"; absolute "$1"'
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program, "bash", given],
        check=True,
        cwd=tmp_path,
        env=environment(HOME="/h o"),
        capture_output=True,
        text=True,
    )
    assert result.stdout == expected.format(here=tmp_path) + "\n"
