"""Gives each parity test the folders of reference values of its kind.

A test that takes `exact_world_golden`, or `gpt2`, `reference` or `smollm2` with that ending, runs once for
each such folder (a `pathlib.Path`). The folders come from `--golden`, by default from tests/golden, and are
told apart by their config.json; sizes differ between folders, so tests read them from the files.

Tests compare through `close`, which remembers the largest error of every quantity; `pytest -v` prints
them as a table at the end.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src import compiler
from numpy.typing import ArrayLike

KINDS = ("exact_world", "gpt2", "reference", "smollm2")
DEFAULT = Path(__file__).parent.parent / "golden"
EMITTERS = "xla_cpu_use_fusion_emitters"


# Not of the scope "package": in a folder without an __init__.py that ends with the session, so every test
# that the process ran afterwards was compiled with all optimizations, a sixth of the suite's time.
@pytest.fixture(autouse=True, scope="module")
def _optimized() -> Iterator[None]:
    """Everything is compiled as for users, and not as tests/conftest.py says."""
    plain = compiler.get_compile_options

    def optimized(*arguments, env_options_overrides=None, **fields):
        overrides = dict(env_options_overrides or {})
        if EMITTERS in os.environ.get("XLA_FLAGS", ""):
            overrides = {EMITTERS: True} | overrides
        return plain(*arguments, env_options_overrides=overrides, **fields)

    before = jax.config.read("jax_disable_most_optimizations")
    # Programs that tests of other folders compiled in this process must not be used.
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", optimized)
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def kind_of(folder: Path) -> str:
    """The kind of reference values in a folder, from its config.json."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise pytest.UsageError(f"--golden: {folder}/config.json is not JSON: {error}") from error
    if config.get("kind") in ("exact_world", "smollm2"):
        return str(config["kind"])
    if config.get("model_type") == "gpt2":
        return "gpt2"
    if "mask_index" in config and "model" in config:
        return "reference"
    raise pytest.UsageError(
        f"--golden: {folder}/config.json names none of the kinds {', '.join(KINDS)}: it needs "
        '"kind": "exact_world" or "smollm2", "model_type": "gpt2", or "model" and "mask_index".'
    )


def golden_folders(given: list[str]) -> dict[str, list[Path]]:
    """The folders of each kind, in the given directories or directly inside them."""
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for directory in map(Path, given or [DEFAULT]):
        own = [directory, *sorted(directory.glob("*/"))] if directory.is_dir() else []
        folders = [folder for folder in own if (folder / "config.json").is_file()]
        if not folders:
            raise pytest.UsageError(f"--golden: no config.json in {directory} or its folders.")
        for folder in folders:
            found[kind_of(folder)].append(folder)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = [kind for kind in KINDS if f"{kind}_golden" in metafunc.fixturenames]
    if wanted:
        folders = golden_folders(metafunc.config.getoption("--golden"))
        for kind in wanted:
            metafunc.parametrize(
                f"{kind}_golden", folders[kind], ids=lambda folder: folder.name, scope="session"
            )


ERRORS = pytest.StashKey[dict[str, tuple[float, float]]]()


@pytest.fixture
def close(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`close(quantity, got, expected, tolerance=1e-5, scale=1.0)`: asserts and remembers.

    The error is `max |got - expected| / (scale + |expected|)`; the default scale suits log-probabilities
    and logits, a smaller one quantities whose small values count.
    """
    errors = request.config.stash.setdefault(ERRORS, {})

    def compare(
        quantity: str,
        got: ArrayLike,
        expected: ArrayLike,
        tolerance: float = 1e-5,
        scale: float = 1.0,
    ) -> None:
        got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        assert got.shape == expected.shape, quantity
        assert np.isfinite(got).all(), quantity
        error = float((np.abs(got - expected) / (scale + np.abs(expected))).max())
        largest, _ = errors.get(quantity, (0.0, 0.0))
        errors[quantity] = (max(largest, error), tolerance)
        assert error <= tolerance, f"{quantity}: error {error:.2e}, tolerance {tolerance:.0e}"

    return compare


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    errors = config.stash.get(ERRORS, {})
    if errors and config.get_verbosity() > 0:
        terminalreporter.section("largest errors against reference values")
        for quantity, (error, tolerance) in errors.items():
            terminalreporter.write_line(f"{quantity:48} {error:8.1e}  (tolerance {tolerance:.0e})")
