"""A run of random parameters, for what loads and exports it."""

from tests.model.runs import model, run

__all__ = ["model", "run"]
