"""What a run found, shown: one self-contained HTML page and its figures.

It may use everything else in the package; only entry points use it.
"""

from sdtt_jax.reporting.picture import write_picture
from sdtt_jax.reporting.report import write_report

__all__ = ["write_picture", "write_report"]
