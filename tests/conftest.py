"""Options of the whole test suite."""

from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        action="append",
        default=[],
        metavar="DIR",
        help="reference values for tests/parity: a folder with a config.json, or a folder of such "
        f"folders; may be given several times (default: {GOLDEN.name}/ beside the tests)",
    )


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of folders that is kept with the tests."""
    return GOLDEN
