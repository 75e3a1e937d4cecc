"""Gives each parity test the folders of reference values of its kind.

A test that takes `exact_world_golden`, `gpt2_golden` or `reference_golden` runs once for each such
folder (a `pathlib.Path`). The folders come from `--golden`, by default from tests/golden, and are
told apart by their config.json; sizes differ between folders, so tests read them from the files.
"""

import json
from pathlib import Path

import pytest

KINDS = ("exact_world", "gpt2", "reference")
DEFAULT = Path(__file__).parent.parent / "golden"


def kind_of(folder: Path) -> str:
    """The kind of reference values in a folder, from its config.json."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise pytest.UsageError(f"--golden: {folder}/config.json is not JSON: {error}") from error
    if config.get("kind") == "exact_world":
        return "exact_world"
    if config.get("model_type") == "gpt2":
        return "gpt2"
    if "mask_index" in config and "model" in config:
        return "reference"
    raise pytest.UsageError(
        f"--golden: {folder}/config.json names none of the kinds {', '.join(KINDS)}: it needs "
        '"kind": "exact_world", "model_type": "gpt2", or "model" and "mask_index".'
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
