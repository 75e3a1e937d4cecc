"""The names at the top of the package. The oracle is the modules that define them."""

import ast
import importlib
import itertools
import operator
import pathlib
import subprocess
import sys
import typing

import numpy as np
import pytest

import sdtt_jax

SOURCE = pathlib.Path(sdtt_jax.__file__).read_text(encoding="utf-8")


def imported() -> dict[str, str]:
    """Name -> module, for the imports that the package puts off until a name is used."""
    (block,) = (node for node in ast.parse(SOURCE).body if isinstance(node, ast.With))
    names = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module
        for alias in node.names:
            # `import x as x` is how a name is exported to type checkers.
            assert alias.asname == alias.name
            names[alias.name] = node.module
    return names


def test_all_of_them_are_public():
    assert sdtt_jax.__all__ == sorted(imported())


@pytest.mark.parametrize(("name", "module"), imported().items())
def test_a_name_is_its_module_s(name, module):
    assert getattr(sdtt_jax, name) is getattr(importlib.import_module(module), name)
    assert name in dir(sdtt_jax)


def test_importing_the_package_imports_next_to_nothing():
    program = "import sys, sdtt_jax; print([m for m in sys.modules if m.startswith(('jax', 'sdtt_jax.'))])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(done.stdout) == ["sdtt_jax.renamed", "sdtt_jax.version"]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        *itertools.product(("Model.logits", "Model.score", "CausalModel.score"), ["tokens"]),
        *itertools.product(("denoising_terms", "nelbo", "distillation_terms"), ["x0"]),
        ("Model.log_probs", "x_t"),
        ("q_xt", "move_chance"),
        ("sample", "x_init"),
        ("causal_nll", "tokens"),
        ("distillation_terms", "dt"),
        ("prior_sample", "fixed"),
        ("subs_log_probs", "logits"),
        ("teacher_targets", "t"),
    ],
)
def test_numpy_arrays_have_the_declared_type(function, name):
    """As the notebook passes them. Oracle: the arrays that `jax.typing.ArrayLike` stands for."""
    declared = typing.get_type_hints(operator.attrgetter(function)(sdtt_jax))[name]
    kinds = [getattr(kind, "array_type", None) for kind in typing.get_args(declared)]
    assert np.ndarray in kinds


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'sdtt_jax' has no attribute 'lod'"):
        _ = sdtt_jax.lod


def test_python_is_given_the_names_that_may_have_been_meant():
    """Python makes the "Did you mean" below a traceback from them."""
    with pytest.raises(AttributeError) as found:
        _ = sdtt_jax.lod
    assert (found.value.name, found.value.obj) == ("lod", sdtt_jax)
    assert "load" in dir(found.value.obj)
