"""Shows the results of a run: one self-contained HTML page and its figures.

It may use everything else in the package; only entry points use it. Only its module `picture`
imports Matplotlib, which takes a second.
"""

from sdtt_jax.reporting.report import write_report

__all__ = ["write_report"]
