"""The report of a run: one self-contained HTML page, and its main figure as a picture."""

from sdtt_jax.reporting.picture import write_picture
from sdtt_jax.reporting.report import write_report

__all__ = ["write_picture", "write_report"]
