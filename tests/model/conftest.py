"""A run of random parameters, for the models as users hold them."""

from tests.model.runs import model, run

__all__ = ["model", "run"]
