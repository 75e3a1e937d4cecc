"""Names that are gone. Oracle: Python's own errors, in a fresh interpreter for `-m`."""

import importlib
import importlib.util
import re
import subprocess
import sys

import pytest

from sdtt_jax.renamed import MODULES, NAMES


def _exists(module):
    return importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("old", [old for old in MODULES if not old.startswith("launch.")])
def test_a_module_that_has_moved_is_answered_by_its_new_name(old):
    with pytest.raises(ModuleNotFoundError, match=re.escape(f"{old} is now {MODULES[old]}")):
        importlib.import_module(old)


@pytest.mark.parametrize("new", sorted(set(MODULES.values())))
def test_what_it_is_answered_by_exists(new):
    assert all(map(_exists, new.split(" and ")))


def test_both_forms_of_import_get_the_answer():
    with pytest.raises(ModuleNotFoundError, match=r"sdtt_jax\.configs is now sdtt_jax\.config\."):
        from sdtt_jax import configs  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"sdtt_jax\.models is now sdtt_jax\.networks"):
        import sdtt_jax.models.denoiser  # noqa: F401


@pytest.mark.parametrize("old", NAMES)
def test_a_name_that_has_gone_is_answered_by_its_new_one(old):
    module, name = old.rsplit(".", 1)
    with pytest.raises(ImportError, match=re.escape(f"{old} is now {NAMES[old]}.")):
        exec(f"from {module} import {name}")
    home, now = NAMES[old].rsplit(".", 1)
    assert hasattr(importlib.import_module(home), now)


def test_a_name_that_never_was_is_none():
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec("from experiments.settings import Nothing")


def test_a_module_that_never_was_is_none():
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        importlib.import_module("sdtt_jax.nothing")


@pytest.mark.parametrize("old", ["launch.fits", "experiments.terminal"])
def test_a_program_that_has_moved_is_answered_by_its_new_name(old):
    asked = subprocess.run([sys.executable, "-m", old], capture_output=True, text=True, check=False)
    assert asked.returncode != 0
    assert f"{old} is now {MODULES[old]}" in asked.stderr
