"""The examples in docstrings, which `pytest --doctest-modules` would run too. Oracle: what they print."""

import doctest
import importlib
import pathlib

import pytest

import sdtt_jax

PACKAGE = pathlib.Path(sdtt_jax.__file__).parent
# A document for users needs an example for each of these.
SHOWN = [
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


def test_examples_print_what_they_say(capsys):
    """In one test: all of them use networks of one size, so that each program is compiled once."""
    for name in modules_with_examples():
        failed, attempted = doctest.testmod(importlib.import_module(name))
        assert attempted, name
        assert not failed, capsys.readouterr().out


@pytest.mark.parametrize("name", SHOWN)
def test_what_users_call_first_has_an_example(name):
    assert ">>> " in getattr(sdtt_jax, name).__doc__
