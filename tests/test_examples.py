"""The examples in docstrings, which `pytest --doctest-modules` would run too. Oracle: what they print."""

import doctest
import importlib
import operator
import pathlib
import tarfile

import pytest

import sdtt_jax

PACKAGE = pathlib.Path(sdtt_jax.__file__).parent
# A document for users needs an example for each of these.
SHOWN = [
    "load",
    "sample",
    "Model.sample",
    "Model.score",
    "distillation_terms",
    "teacher_targets",
    "next_round",
    "round_dt",
    "MaskedDiffusion",
    "make_schedule",
    "q_xt",
    "subs_log_probs",
    "denoising_terms",
]


def modules_with_examples() -> list[str]:
    files = (path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
    return sorted(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files
    )


@pytest.fixture
def demo(golden, tmp_path, monkeypatch):
    """A folder with a tiny run in runs/demo; the examples are run there."""
    with tarfile.open(golden / "old_run" / "old_run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "runs").mkdir()
    (tmp_path / "old_run").rename(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("demo")
def test_examples_print_what_they_say(capsys):
    """One test for all: their networks have one size, so that each program is compiled once."""
    for name in modules_with_examples():
        failed, attempted = doctest.testmod(importlib.import_module(name))
        assert attempted, name
        assert not failed, capsys.readouterr().out


@pytest.mark.parametrize("name", SHOWN)
def test_what_users_call_first_has_an_example(name):
    assert ">>> " in operator.attrgetter(name)(sdtt_jax).__doc__
