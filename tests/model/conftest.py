"""A run of random parameters, for tests of models as users hold them."""

from tests.model.runs import model, run

__all__ = ["model", "run"]
