"""A run of random parameters, for tests that load and export it."""

from tests.model.runs import model, run

__all__ = ["model", "run"]
